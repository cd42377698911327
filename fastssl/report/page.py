"""The page: what is told, in which words."""

from __future__ import annotations

import inspect
import json
from dataclasses import dataclass
from functools import partial
from importlib.resources import files
from pathlib import Path
from statistics import fmean
from typing import Any

import jinja2
import torch
import torch.nn.functional as F
import yaml
from markupsafe import Markup
from sklearn.manifold import TSNE
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]
from torch import Tensor

import fastssl
from fastssl import methods
from fastssl.data import engines, plan_words
from fastssl.data.clips import ClipSet
from fastssl.data.engines import Choice, Engine
from fastssl.data.images import ImageSet, Splits
from fastssl.data.reading import counted
from fastssl.errors import UserError
from fastssl.eval import Pretext, extract, tuning
from fastssl.eval.protocol import RANDOM, TRAINED
from fastssl.report import figures, pictures, similarity
from fastssl.report.figures import Level
from fastssl.report.sample import draw_sample
from fastssl.train import config as configs
from fastssl.train import log
from fastssl.train.config import RunConfig
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


def render(trained: Trained, splits: Splits, saw: str | None = None, clips: ClipSet | None = None) -> str:
    """The whole page as HTML; arguments are those of `fastssl.report.write_report`."""
    labelled = splits.test is not None and splits.test.labels is not None
    shown = splits.train if splits.test is None else splits.test
    device = resolve_device(trained.config.device)
    method = trained.method.to(device)
    seed, plan, size = trained.config.seed, trained.config.view_plan(), trained.config.image_size
    bank, queries = (extract(method.kept, part.images, size=size) for part in (splits.train, shown))
    found = pictures.nearest(splits.train, bank, shown, queries, rows=NEIGHBOUR_ROWS, count=NEIGHBOURS, seed=seed)
    scores = _scores(trained)
    sample = partial(draw_sample, plan=plan, rows=VIEW_ROWS, seed=seed, engine=_drawing(trained.config.engine, saw))
    looked_at = (
        pictures.named(shown, sample(shown)) if clips is None else pictures.some_clips(clips, plan, VIEW_ROWS, seed)
    )
    template = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template.filters |= {
        "percent": lambda x: f"{100 * x:.1f}",
        "points": _points,
        "count": lambda n: f"{n:,}",
        "cosine": lambda x: f"{x:.2f}".replace("-", "\N{MINUS SIGN}"),
    }
    return template.from_string(files(__package__).joinpath("page.html").read_text("utf-8")).render(
        run=_summary(trained, saw or counted(len(splits.train), "image"), files=saw is None, video=clips is not None),
        scores=scores,
        pretext=Pretext(**scores["pretext"]) if scores and scores.get("pretext") else None,
        tuned=_tuned(trained),
        labelled=labelled,
        curves=_curves(trained, scores),
        neighbours=pictures.neighbours(splits.train, shown, *found),
        similarities=similarity.matrices(
            shown, {RANDOM: trained.random_encoder().to(device), TRAINED: method.kept}, size=size, seed=seed
        ),
        map=_map(shown, queries, seed),
        views=pictures.sample_views(splits.train, sample(splits.train)),
        method_pictures=pictures.method_pictures(method, *looked_at, plan, device),
        tracked=[pictures.movie(path) for path in trained.folder.tracked()],
        plan=plan_words.describe(plan),
        skipped=splits.train.skipped[:SKIPPED_SHOWN],
        skipped_total=len(splits.train.skipped),
        settings=yaml.safe_dump(configs.to_dict(trained.config), sort_keys=False),
        environment=trained.checkpoint.environment,
        version=fastssl.__version__,
    )


def _drawing(engine: Choice, saw: str | None) -> Engine:
    """What draws the views of a run by ``engine``: where that is missing, one that draws alike from the same files."""
    if engine == "auto" or saw is not None:  # what stands for shards and videos is in memory
        return "native"
    try:
        engines.require(engine)
    except UserError:
        return "stream"
    return engine


def _summary(trained: Trained, saw: str, *, files: bool, video: bool) -> dict[str, Any]:
    config, checkpoint = trained.config, trained.checkpoint
    rows = log.read(trained.folder.metrics)
    steps = len(rows)
    return {
        "title": f"{methods.get(config.method).__name__} on {Path(config.data).name}",
        "epochs": config.epochs,
        "epochs_done": checkpoint.epoch,
        "finished": checkpoint.finished,
        "summary": _summary_line(config.method),
        "files": files,  # else shards or videos, of which some images stand for all
        "video": video,
        "encoder": config.encoder,
        "options": _options(config),
        "parameters": _amount(sum(p.numel() for p in trained.encoder.parameters())),
        "saw": saw,
        "image_size": config.image_size,
        "batch_size": config.batch_size,
        "time": _duration(checkpoint.seconds),
        "speed": f"{steps * config.batch_size / checkpoint.seconds:,.0f}" if checkpoint.seconds else None,
        "waiting": log.share_waiting(rows),
        "command": configs.command(config),
    }


def _summary_line(method: str) -> str:
    """What the method does, by the first line of its module."""
    text = inspect.getdoc(inspect.getmodule(methods.get(method))) or ""
    return text.partition("\n")[0]


def _options(config: RunConfig) -> str:
    """What of the encoder can be set, in words: "stem imagenet, width 64"."""
    options = {name: value for name, value in config.encoder_options().items() if name in configs.ENCODER_OPTIONS}
    return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in options.items())


def _scores(trained: Trained) -> dict[str, Any] | None:
    """What ``scores.json`` says, if the run has been scored."""
    return _read(trained.folder.scores)


def _read(path: Path) -> dict[str, Any] | None:
    try:
        return json.loads(path.read_text("utf-8")) if path.exists() else None
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}): write it again by `fastssl evaluate {path.parent}`") from error


def _tuned(trained: Trained) -> dict[str, Any] | None:
    """What ``tuned.json`` says, if the run's encoder has been fine-tuned: a row for each share of labels and depth."""
    found = _read(trained.folder.tuned)
    if found is None:
        return None
    rows: dict[tuple[float, Any], dict[str, Any]] = {}
    for line in tuning.lines(map(tuning.from_dict, found["rows"])):
        row = rows.setdefault((line.labels, line.tuned), {"images": line.images, "words": tuning.in_words(line.tuned)})
        row["random" if line.features == RANDOM else "trained"] = line
        row["share"] = line.labels
    return {"rows": list(rows.values()), "test_images": found["test_images"]}


def _curves(trained: Trained, scores: dict[str, Any] | None) -> list[Curve]:
    rows = log.read(trained.folder.metrics)
    if not rows:
        return []
    per_epoch = sum(row.epoch == 1 for row in rows)
    epochs = [row.step / per_epoch for row in rows]
    curves = [_loss_curve(rows, epochs)]
    if "mutual_information_bound" in rows[0].extra:
        curves.append(_bound_curve(rows, epochs))
    if "pretext_accuracy" in rows[0].extra:
        curves.append(_pretext_curve(rows, epochs))
    if "pretext_error" in rows[0].extra:
        curves.append(_error_curve(rows, epochs))
    if "sharpness" in rows[0].extra:
        curves.append(_sharpness_curve(rows, epochs))
    curves += [_sign_curve(rows, epochs, *told) for told in _SIGNS if sum(told[0] in row.extra for row in rows) > 1]
    measured = [(epoch, row.knn) for epoch, row in zip(epochs, rows, strict=True) if row.knn is not None]
    if measured:
        curves.append(_knn_curve(measured, scores))
    return curves


def _loss_curve(rows: list[Row], epochs: list[float]) -> Curve:
    constant = [row.extra["constant_loss"] for row in rows if "constant_loss" in row.extra]
    levels = [Level(fmean(constant), "one answer for all")] if constant else []
    losses = [row.loss for row in rows]
    svg = figures.curve(epochs, losses, title="Loss over epochs", means=True, levels=levels)
    note = "Each step faint, the mean of each epoch bold. Lower is better."
    if constant:
        note += " Dashed: the least of who always answers with the shares of the classes, whatever the image shows."
    return Curve("Loss", svg, note)


def _bound_curve(rows: list[Row], epochs: list[float]) -> Curve:
    bound = [row.extra["mutual_information_bound"] for row in rows]
    ceiling = Level(bound[0] + rows[0].loss, "most a batch of this size can show")
    svg = figures.curve(epochs, bound, title="Bound on mutual information over epochs", means=True, levels=[ceiling])
    note = "Nats that two views of an image share at least: log of the candidates less the loss (arXiv:1807.03748)."
    return Curve("Mutual information", svg, note)


def _pretext_curve(rows: list[Row], epochs: list[float]) -> Curve:
    solved = [100 * row.extra["pretext_accuracy"] for row in rows]
    guessing = Level(100 * fmean(row.extra["chance"] for row in rows), "chance")
    title = "Accuracy of the pretext task over epochs"
    svg = figures.curve(epochs, solved, title=title, means=True, levels=[guessing])
    return Curve(
        "Pretext task", svg, "Per cent of each batch solved. Nothing is learnt from a task solved by a shortcut."
    )


def _error_curve(rows: list[Row], epochs: list[float]) -> Curve:
    errors = [row.extra["pretext_error"] for row in rows]
    constant = Level(fmean(row.extra["constant_error"] for row in rows), "always the mean")
    title = "Error of the pretext task over epochs"
    svg = figures.curve(epochs, errors, title=title, means=True, levels=[constant])
    note = "Root of the mean squared error of each batch. Dashed: one answer, the mean of what is known, for all."
    return Curve("Pretext task", svg, note)


def _sharpness_curve(rows: list[Row], epochs: list[float]) -> Curve:
    sharp = [row.extra["sharpness"] for row in rows]
    svg = figures.curve(epochs, sharp, title="Sharpness over epochs", means=True, levels=[Level(1.0, "the original's")])
    return Curve("Sharpness", svg, "Mean length of the gradient of what was painted, over that of what was hidden.")


_SIGNS = (
    ("feature_rank", "Effective rank", "Dimensions that features of a batch fill (arXiv:2210.02885). 1: collapsed."),
    (
        "output_rank",
        "Effective rank of what is compared",
        "The same of projections or predictions, which collapse first.",
    ),
    ("feature_std", "Spread of the features", "1 if they point in all directions alike, 0 if in one: collapsed."),
    ("teacher_entropy", "Teacher's entropy", "Nats. Near 0 it always says one thing, or is sure of each image."),
    ("teacher_information", "Teacher's information", "Nats that tell images apart. 0: it says the same of all."),
)


def _sign_curve(rows: list[Row], epochs: list[float], sign: str, title: str, note: str) -> Curve:
    looks = [(epoch, row.extra[sign]) for epoch, row in zip(epochs, rows, strict=True) if sign in row.extra]
    when, values = zip(*looks, strict=True)
    return Curve(title, figures.curve(when, values, title=f"{title} over epochs"), note)


def _knn_curve(measured: list[tuple[float, float]], scores: dict[str, Any] | None) -> Curve:
    epochs, accuracy = zip(*measured, strict=True)
    others = scores["rows"][1:] if scores else []
    levels = [Level(100 * row["knn"], row["features"]) for row in others]
    svg = figures.curve(epochs, [100 * value for value in accuracy], title="kNN accuracy over epochs", levels=levels)
    return Curve(
        "kNN while training",
        svg,
        "Per cent of test images that their nearest training images classify. Dashed: untrained.",
    )


def _map(images: ImageSet, features: Tensor, seed: int) -> Map | None:
    """t-SNE of at most `MAP_POINTS` images, drawn by ``seed``; None for too few to spread."""
    chosen = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))[:MAP_POINTS]
    if len(chosen) < 8:
        return None
    unit = F.normalize(features[chosen], dim=1).numpy()
    perplexity = min(30.0, len(chosen) / 4)
    with threadpool_limits(1):  # its many short parallel loops lose more by waiting for a busy core than they gain
        points = TSNE(perplexity=perplexity, init="pca", random_state=seed).fit_transform(unit)
    classes = None if images.labels is None else images.labels[chosen].tolist()
    legend = tuple(
        (figures.GLYPHS[figures.SHAPES[i % len(figures.SHAPES)]], i % figures.COLOURS, name)
        for i, name in enumerate(images.classes)
    )
    return Map(figures.scatter(points, classes, title="Map of the features by t-SNE"), len(chosen), legend)


def _points(gain: float) -> str:
    """A difference of accuracies, in points with its sign."""
    return f"{100 * gain:+.1f}".replace("-", "\N{MINUS SIGN}")


def _amount(number: int) -> str:
    """1234567 -> 1.23 M."""
    for unit, size in (("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return str(number)


def _duration(seconds: float) -> str:
    """Seconds as a person says them."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    parts = [(hours, "h"), (minutes, "min"), (rest, "s")]
    return " ".join(f"{n} {unit}" for n, unit in parts if n) or f"{seconds:.1f} s"
