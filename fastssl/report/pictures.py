"""Images of the page: nearest neighbours and sample views, as PNG data inside the HTML."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from fastssl.data.clips import ClipLoader, ClipSet
from fastssl.data.images import ImageSet
from fastssl.data.plans import ViewPlan
from fastssl.eval.features import evaluating
from fastssl.methods import Method
from fastssl.report.sample import Sample, choose, visible

SIDE = 96  # pixels of a thumbnail's longer side, at most


@dataclass(frozen=True)
class Picture:
    """A thumbnail.

    Attributes:
        uri: the image itself.
        name: its path inside the data set.
        label: its class, if it has one.
        right: whether that is the class of the query; None for queries and without labels.
    """

    uri: str
    name: str
    label: str | None = None
    right: bool | None = None


@dataclass(frozen=True)
class Neighbours:
    """A query and the images whose features are nearest, nearest first."""

    query: Picture
    found: tuple[Picture, ...]


@dataclass(frozen=True)
class Views:
    """An image and what augmentation made of it."""

    original: Picture
    views: tuple[Picture, ...]


def nearest(
    bank: ImageSet,
    bank_features: Tensor,
    queries: ImageSet,
    query_features: Tensor,
    *,
    rows: int,
    count: int,
    seed: int,
) -> tuple[Tensor, Tensor]:
    """(rows,) int64, queries that ``seed`` draws; (rows, count), what of ``bank`` is nearest to each by cosine.

    With labels the queries take turns through the classes. In a single set an image is not its own neighbour.

    Args:
        bank_features: (M, F) float32. query_features: (Q, F).
    """
    chosen = choose(queries, rows, seed)
    similarity = F.normalize(query_features[chosen], dim=1) @ F.normalize(bank_features, dim=1).T
    if bank is queries:
        similarity[torch.arange(len(chosen)), chosen] = -torch.inf
    return chosen, similarity.topk(min(count, len(bank) - (bank is queries)), dim=1).indices


def neighbours(bank: ImageSet, queries: ImageSet, chosen: Tensor, found: Tensor) -> list[Neighbours]:
    """What :func:`nearest` found, as pictures, and whether each is of its query's class."""
    table = []
    for query, row in zip(chosen.tolist(), found.tolist(), strict=True):
        label = _label(queries, query)
        pictures = tuple(_picture(bank, i, right=None if label is None else _label(bank, i) == label) for i in row)
        table.append(Neighbours(_picture(queries, query), pictures))
    return table


def sample_views(data: ImageSet, sample: Sample) -> list[Views]:
    """The images of ``sample``, which is of ``data``, each with its views."""
    return [
        Views(
            Picture(_uri(sample.images[row]), data.names[index], _label(data, index)),
            tuple(Picture(_uri(batch[row]), data.names[index]) for batch in sample.views),
        )
        for row, index in enumerate(sample.chosen.tolist())
    ]


def method_pictures(
    method: Method, names: list[str], views: list[Tensor], plan: ViewPlan, device: torch.device
) -> list[dict[str, Picture]]:
    """What ``method`` makes of images or clips, under captions; nothing, if it has no pictures.

    Args:
        method: on ``device``.
        names: of N images or clips.
        views: of each, as training gets them: N in each tensor.
        plan: by which they were made.
        device: that computes.
    """
    shown = drawn_by(method, views, plan, device)
    return [
        {caption: Picture(_uri(batch[row]), name) for caption, batch in shown.items()}
        for row, name in enumerate(names if shown else [])
    ]


def drawn_by(method: Method, views: list[Tensor], plan: ViewPlan, device: torch.device) -> dict[str, Tensor]:
    """The pictures that ``method`` makes of N images or clips, by caption, each (N, 3, H, W) uint8."""
    with evaluating(method), torch.no_grad():
        drawn = method.pictures([view.to(device) for view in views])
    return {caption: visible(batch.float().cpu(), plan) for caption, batch in drawn.items()}


def named(data: ImageSet, sample: Sample) -> tuple[list[str], list[Tensor]]:
    """The names of the images of ``sample``, which is of ``data``, and their views."""
    return [data.names[index] for index in sample.chosen.tolist()], sample.normalized


def some_clips(clips: ClipSet, plan: ViewPlan, rows: int, seed: int) -> tuple[list[str], list[Tensor]]:
    """The names of at most ``rows`` clips, and their views."""
    loader = ClipLoader(clips, plan, min(rows, len(clips)), seed)
    _, chosen = next(loader.schedule.chosen(0))
    return [clips.name(index) for index in chosen.tolist()], next(loader.epoch(0))


def _label(images: ImageSet, index: int) -> str | None:
    return None if images.labels is None else images.classes[int(images.labels[index])]


def _picture(images: ImageSet, index: int, *, right: bool | None = None) -> Picture:
    return Picture(_uri(images.images[index]), images.names[index], _label(images, index), right)


def as_pillow(image: Tensor) -> Image.Image:
    """image: (3, H, W) uint8."""
    return Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())


def movie(path: Path) -> Picture:
    """A gif as it is, under the name of its file."""
    return Picture("data:image/gif;base64," + base64.b64encode(path.read_bytes()).decode(), path.stem)


def _uri(image: Tensor) -> str:
    """image: (3, H, W) uint8."""
    picture = as_pillow(image)
    picture.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    picture.save(file, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
