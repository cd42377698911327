"""Scoring a run by tracking: what ``fastssl evaluate`` does with videos that have masks."""

from __future__ import annotations

import json
from pathlib import Path

from torch import Tensor

from fastssl.cli import console
from fastssl.data.davis import open_davis
from fastssl.errors import UserError
from fastssl.eval.tracking import TrackConfig, evaluate_tracking
from fastssl.files import atomic_write
from fastssl.report.overlay import beside, overlaid, write_movie
from fastssl.train.reproduce import reproducible, resolve_device
from fastssl.train.trained import Trained

_SHOWN, _HEIGHT, _RATE = 3, 120, 12.0  # of the picture: videos beside each other, their height, frames a second


def score_tracking(trained: Trained, source: str, config: TrackConfig, sequences: str | None) -> None:
    """Tracks through the videos of ``source``, writes scores as JSON and a gif into the run's folder, prints a table.

    Args:
        trained: the run.
        source: a folder as DAVIS has them.
        config: how labels are carried.
        sequences: a file with the names of those to take, as DAVIS's ImageSets/2017/val.txt; None takes all.
    Raises:
        UserError: if there is nothing to score.
    """
    davis = open_davis(source, None if sequences is None else _names(Path(sequences)))
    name = Path(source).absolute().name
    run = trained.config
    shown: list[list[Tensor]] = []

    def keep(_: str, frames: Tensor, masks: Tensor) -> None:
        if len(shown) < _SHOWN:
            pairs = list(zip(frames, masks, strict=True))[::2]
            shown.append([overlaid(frame, mask) for frame, mask in pairs])

    with reproducible(run.seed, run.threads), console.reading(source) as progress:
        scores = evaluate_tracking(
            trained.method,
            trained.untrained(),
            davis,
            config=config,
            device=resolve_device(run.device),
            progress=progress,
            watch=keep,
        )
    path, picture = trained.folder.scores_on(name), trained.folder.tracked_on(name)
    with atomic_write(path) as partial:
        partial.write_text(json.dumps(scores.to_dict(), indent=2) + "\n", encoding="utf-8")
    write_movie(beside(shown, _HEIGHT), picture, _RATE)
    console.show_tracking(scores)
    print(f"scores: {path}\npicture: {picture}")


def _names(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").split()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read the names of sequences in {path}: {error}") from error
