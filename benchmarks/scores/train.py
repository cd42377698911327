"""Trains and scores one seed of a cell; what was stopped goes on where it was."""

from __future__ import annotations

import hashlib
import json
import signal
import time
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from benchmarks.scores.cells import LABELS, SUPERVISED, Cell
from fastssl.data import images
from fastssl.data.images import Cache, Splits
from fastssl.eval import FinetuneConfig, Row, finetune, pretext_score, score_encoder
from fastssl.eval.protocol import RANDOM, TRAINED
from fastssl.eval.tuning import Bench, Case
from fastssl.train import config as configs
from fastssl.train.config import RunConfig
from fastssl.train.folder import RunFolder
from fastssl.train.loop import Progress, build_method, pretrain
from fastssl.train.reproduce import reproducible
from fastssl.train.trained import Trained, open_run

# Of labels few or many: as many images are seen.
SUPERVISION = FinetuneConfig(epochs=6, precision="bfloat16")
TUNING = FinetuneConfig(epochs=10, batch_size=128)


class Clock:
    """Asks whatever trains to stop when the minutes are over; its state is then on disk."""

    def __init__(self, minutes: float) -> None:
        self._end = time.monotonic() + 60 * minutes

    @property
    def over(self) -> bool:
        return time.monotonic() > self._end

    def watch(self, progress: Progress) -> None:
        """Of `pretrain`, which ends the step and writes a checkpoint."""
        if self.over and progress.row.step < progress.steps:
            signal.raise_signal(signal.SIGINT)

    def tick(self, done: int, total: int) -> None:
        """Of fine-tuning, which goes on from its last epoch."""
        if self.over and done < total:
            raise KeyboardInterrupt("the minutes are over")


class Data:
    """The images of a source at any size, kept decoded in ``work``."""

    def __init__(self, source: str, work: Path) -> None:
        self.source, self.name = source, Path(source).name
        self._cache = Cache(work / "images", print)
        self.splits = lru_cache(1)(self._splits)

    def _splits(self, size: int) -> Splits:
        return images.load(self.source, size=size, cache=self._cache)


def settings_of(cell: Cell, data: Data) -> dict[str, Any]:
    """All that decides the rows of a cell but the seed: rows of other settings are not its."""
    told = configs.to_dict(cell.config(data.name, 0))
    del told["seed"]
    if cell.method == SUPERVISED:
        kept = ("data", "image_size", "encoder", *configs.ENCODER_OPTIONS)
        told = {name: told[name] for name in kept} | {"supervision": asdict(SUPERVISION)}
    if cell.tuned:
        told["tuned"] = {"labels": LABELS, "blocks": list(cell.tuned), "finetune": asdict(TUNING)}
    return told


def row_of(cell: Cell, seed: int, data: Data, work: Path, clock: Clock) -> dict[str, Any]:
    """Trains and scores ``seed``.

    Raises:
        KeyboardInterrupt: if the minutes were over, or it was stopped; the same call goes on.
    """
    config = cell.config(data.source, seed)
    told = json.dumps(settings_of(cell, data), sort_keys=True)
    folder = RunFolder(work / f"{cell.name}-{hashlib.blake2b(told.encode(), digest_size=4).hexdigest()}" / str(seed))
    splits = data.splits(config.image_size)
    if cell.method == SUPERVISED:
        return _supervised(config, splits, folder, clock)
    pretrain(config, splits, folder, resume=folder.checkpoint.exists(), watch=clock.watch)
    trained = open_run(folder.path)
    tuned = _tuned(cell, trained, splits, clock)  # before the rest, which cannot be stopped
    assert splits.test is not None
    with reproducible(seed, config.threads):
        task = pretext_score(trained.method, splits.test, config.view_plan(), batch_size=config.batch_size, seed=seed)
        rows = [
            score_encoder(name, encoder, splits, size=config.image_size)
            for name, encoder in ((TRAINED, trained.encoder), (RANDOM, trained.random_encoder()))
        ]
    steps = config.epochs * (len(splits.train) // config.batch_size)
    return {
        "seed": seed,
        **_cost(trained.encoder, steps, trained.checkpoint.seconds),
        "pretext": asdict(task),
        **_scores(rows),
        **({"tuned": tuned} if tuned else {}),
    }


def _cost(encoder: torch.nn.Module, steps: int, seconds: float | None) -> dict[str, Any]:
    parameters = sum(p.numel() for p in encoder.parameters() if p.requires_grad)
    told = {"parameters": parameters, "steps": steps}
    return told if seconds is None else {**told, "seconds": round(seconds, 1)}


def _scores(rows: list[Row]) -> dict[str, dict[str, float]]:
    return {row.features: {"knn": row.knn, "linear": row.linear} for row in rows}


def _supervised(config: RunConfig, splits: Splits, folder: RunFolder, clock: Clock) -> dict[str, Any]:
    """The same encoder from the same start, trained with all labels; its task is the classification itself."""
    encoder = build_method(config).encoder
    assert splits.test is not None
    with reproducible(config.seed, config.threads):
        tuned = finetune(
            encoder,
            splits.train,
            splits.test,
            size=config.image_size,
            config=SUPERVISION,
            seed=config.seed,
            checkpoint=folder.tuning,
            watch=clock.tick,
        )
        rows = [
            score_encoder(name, scored, splits, size=config.image_size)
            for name, scored in ((TRAINED, tuned.classifier.encoder), (RANDOM, encoder))
        ]
    task = {"accuracy": tuned.accuracy, "chance": 1 / len(splits.train.classes), "images": len(splits.test)}
    return {"seed": config.seed, **_cost(encoder, tuned.steps, None), "pretext": task, **_scores(rows)}


def _tuned(cell: Cell, trained: Trained, splits: Splits, clock: Clock) -> list[dict[str, Any]]:
    """Fine-tuning with few labels, more and more of the encoder; all of it from a random start too.

    What is done is kept beside the run.
    """
    config = trained.config
    kept = trained.folder.path / "tuned-rows.json"
    rows: list[dict[str, Any]] = json.loads(kept.read_text()) if kept.exists() else []
    with reproducible(config.seed, config.threads):
        bench = Bench(
            trained.encoder,
            trained.random_encoder(),
            splits,
            size=config.image_size,
            config=TUNING,
            checkpoint=trained.folder.tuning,
        )
        cases = [Case(TRAINED, LABELS, tuned, config.seed) for tuned in cell.tuned]
        cases += [Case(RANDOM, LABELS, tuned, config.seed) for tuned in cell.tuned if tuned in (0, "all")]
        for case in cases[len(rows) :]:
            if clock.over:
                raise KeyboardInterrupt("the minutes are over")
            rows.append(bench.run(case, clock.tick).to_dict())
            kept.write_text(json.dumps(rows))
    return rows
