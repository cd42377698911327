"""Scoring a run: what ``pretrain`` and ``evaluate`` share."""

from __future__ import annotations

import json
from pathlib import Path

from fastssl.cli import console
from fastssl.data.images import Splits
from fastssl.eval import evaluate
from fastssl.files import atomic_write
from fastssl.train.reproduce import reproducible, resolve_device
from fastssl.train.trained import Trained


def score(trained: Trained, splits: Splits, path: Path) -> None:
    """Scores the encoder on ``splits``, writes the scores to ``path`` as JSON and prints them.

    Raises:
        UserError: if the images have no labels.
    """
    config = trained.config
    with (
        reproducible(config.seed, config.threads),
        console.busy("scoring the encoder, an untrained one and raw pixels"),
    ):
        scores = evaluate(
            trained.encoder,
            trained.random_encoder(),
            splits,
            size=config.image_size,
            device=resolve_device(config.device),
        )
    with atomic_write(path) as partial:
        partial.write_text(json.dumps(scores.to_dict(), indent=2) + "\n", encoding="utf-8")
    console.show_scores(scores)
    print(f"scores: {path}")
