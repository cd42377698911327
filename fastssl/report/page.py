"""The page: what is told, in which words."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import jinja2
import numpy as np
import torch
import torch.nn.functional as F
import yaml
from markupsafe import Markup
from sklearn.manifold import TSNE
from torch import Tensor

import fastssl
from fastssl.data.images import ImageSet, Splits
from fastssl.eval import extract
from fastssl.report import figures, pictures
from fastssl.report.figures import Level
from fastssl.train import config as configs
from fastssl.train import log
from fastssl.train.log import Row
from fastssl.train.reproduce import resolve_device
from fastssl.train.trained import Trained

NEIGHBOUR_ROWS, NEIGHBOURS, VIEW_ROWS, MAP_POINTS, SKIPPED_SHOWN = 12, 8, 6, 1000, 200


@dataclass(frozen=True)
class Curve:
    """A figure with its heading and a sentence on how to read it."""

    title: str
    svg: Markup
    note: str


@dataclass(frozen=True)
class Map:
    """The map of features, with its legend as (glyph, number of the colour, class)."""

    svg: Markup
    points: int
    legend: tuple[tuple[str, int, str], ...]


def render(trained: Trained, splits: Splits) -> str:
    """The whole page as HTML."""
    shown = splits.train if splits.test is None else splits.test
    device = resolve_device(trained.config.device)
    encoder = trained.encoder.to(device)
    bank, queries = (
        extract(encoder, part.images, size=trained.config.image_size) for part in (splits.train, shown)
    )
    seed = trained.config.seed
    scores = _scores(trained)
    template = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template.filters |= {"percent": lambda x: f"{100 * x:.1f}", "points": _points, "count": lambda n: f"{n:,}"}
    return template.from_string(files(__package__).joinpath("page.html").read_text("utf-8")).render(
        run=_summary(trained, splits),
        scores=scores,
        labelled=splits.test is not None,
        curves=_curves(trained, scores),
        neighbours=pictures.neighbours(
            splits.train, bank, shown, queries, rows=NEIGHBOUR_ROWS, count=NEIGHBOURS, seed=seed
        ),
        map=_map(shown, queries, seed),
        views=pictures.sample_views(splits.train, trained.config.view_plan(), rows=VIEW_ROWS, seed=seed),
        skipped=splits.train.skipped[:SKIPPED_SHOWN],
        skipped_total=len(splits.train.skipped),
        settings=yaml.safe_dump(configs.to_dict(trained.config), sort_keys=False),
        environment=trained.checkpoint.environment,
        version=fastssl.__version__,
    )


def _summary(trained: Trained, splits: Splits) -> dict[str, Any]:
    config, checkpoint = trained.config, trained.checkpoint
    rows = log.read(trained.folder.metrics)
    steps = len(rows)
    return {
        "method": config.method,
        "data": config.data,
        "epochs": config.epochs,
        "epochs_done": checkpoint.epoch,
        "finished": checkpoint.finished,
        "encoder": config.encoder,
        "stem": config.stem,
        "width": config.width,
        "parameters": _amount(sum(p.numel() for p in trained.encoder.parameters())),
        "images": len(splits.train),
        "image_size": config.image_size,
        "batch_size": config.batch_size,
        "time": _duration(checkpoint.seconds),
        "speed": f"{steps * config.batch_size / checkpoint.seconds:,.0f}" if checkpoint.seconds else None,
        "command": configs.command(config),
    }


def _scores(trained: Trained) -> dict[str, Any] | None:
    """What ``scores.json`` says, if the run has been scored."""
    path = trained.folder.scores
    return json.loads(path.read_text("utf-8")) if path.exists() else None


def _curves(trained: Trained, scores: dict[str, Any] | None) -> list[Curve]:
    rows = log.read(trained.folder.metrics)
    if not rows:
        return []
    per_epoch = max(1, sum(row["epoch"] == 1 for row in rows))
    epochs = [row["step"] / per_epoch for row in rows]
    loss = [row["loss"] for row in rows]
    curves = [Curve("Loss", figures.curve(epochs, loss, title="Loss over epochs", means=True), "In nats: each step faint, each epoch's mean bold. Lower is better.")]
    if "mutual_information_bound" in rows[0]:
        curves.append(_bound_curve(rows, epochs))
    measured = [(epoch, row["knn"]) for epoch, row in zip(epochs, rows, strict=True) if row["knn"] is not None]
    if measured:
        curves.append(_knn_curve(measured, scores))
    return curves
