"""Scoring a run: what ``pretrain`` and ``evaluate`` share."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from fastssl.cli import console
from fastssl.data.images import Splits
from fastssl.eval import Pretext, evaluate, pretext_score
from fastssl.files import atomic_write
from fastssl.train.reproduce import reproducible, resolve_device
from fastssl.train.trained import Trained


def score(trained: Trained, splits: Splits, path: Path) -> None:
    """Scores the encoder and a pretext task of images on ``splits``, writes that to ``path`` as JSON and prints it.

    Raises:
        UserError: if the images have no labels.
    """
    config = trained.config
    with (
        reproducible(config.seed, config.threads),
        console.busy("scoring the encoder, an untrained one and raw pixels"),
    ):
        device = resolve_device(config.device)
        scores = evaluate(trained.encoder, trained.random_encoder(), splits, size=config.image_size, device=device)
        task = _pretext(trained, splits) if config.modality == "image" else None
    with atomic_write(path) as partial:
        told = {**scores.to_dict(), "pretext": None if task is None else asdict(task)}
        partial.write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")
    console.show_scores(scores, task)
    print(f"scores: {path}")


def _pretext(trained: Trained, splits: Splits) -> Pretext:
    config, device = trained.config, resolve_device(trained.config.device)
    assert splits.test is not None
    return pretext_score(
        trained.method.to(device),
        splits.test,
        config.view_plan(),
        batch_size=config.batch_size,
        seed=config.seed,
        device=device,
    )
