"""Images of the page: nearest neighbours and sample views, as PNG data inside the HTML."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from fastssl.data.images import ImageSet
from fastssl.data.plans import ViewPlan
from fastssl.data.views import make_views
from fastssl.eval.features import evaluating
from fastssl.methods import Method

SIDE = 96  # pixels of a thumbnail, at most


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


def neighbours(
    bank: ImageSet,
    bank_features: Tensor,
    queries: ImageSet,
    query_features: Tensor,
    *,
    rows: int,
    count: int,
    seed: int,
) -> list[Neighbours]:
    """The ``count`` images of ``bank`` nearest by cosine to each of ``rows`` queries, which ``seed`` draws.

    With labels the queries take turns through the classes. In a single set an image is not its own neighbour.

    Args:
        bank_features: (M, F) float32. query_features: (Q, F).
    """
    chosen = choose(queries, rows, seed)
    similarity = F.normalize(query_features[chosen], dim=1) @ F.normalize(bank_features, dim=1).T
    if bank is queries:
        similarity[torch.arange(len(chosen)), chosen] = -torch.inf
    nearest = similarity.topk(min(count, len(bank) - (bank is queries)), dim=1).indices
    table = []
    for query, found in zip(chosen.tolist(), nearest.tolist(), strict=True):
        label = _label(queries, query)
        pictures = tuple(_picture(bank, i, right=None if label is None else _label(bank, i) == label) for i in found)
        table.append(Neighbours(_picture(queries, query), pictures))
    return table


def sample_views(images: ImageSet, plan: ViewPlan, *, rows: int, seed: int) -> list[Views]:
    """``rows`` images, drawn by ``seed``, each with one set of views as training sees them."""
    chosen = choose(images, rows, seed)
    visible = visible_views(images.images[chosen], plan, seed)
    return [
        Views(_picture(images, index), tuple(Picture(_uri(batch[row]), images.names[index]) for batch in visible))
        for row, index in enumerate(chosen.tolist())
    ]


def method_pictures(
    method: Method, images: ImageSet, plan: ViewPlan, *, rows: int, seed: int, device: torch.device
) -> list[dict[str, Picture]]:
    """What ``method`` makes of ``rows`` images, drawn by ``seed``, under captions; nothing, if it has no pictures.

    Args:
        method: on ``device``.
    """
    chosen = choose(images, rows, seed)
    visible = drawn_by(method, images.images[chosen], plan, seed=seed, device=device)
    names = [images.names[index] for index in chosen.tolist()] if visible else []
    return [
        {caption: Picture(_uri(batch[row]), name) for caption, batch in visible.items()}
        for row, name in enumerate(names)
    ]


def drawn_by(method: Method, images: Tensor, plan: ViewPlan, *, seed: int, device: torch.device) -> dict[str, Tensor]:
    """The pictures that ``method`` makes of (N, 3, S, S) uint8 images, by caption, each (N, 3, H, W) uint8."""
    views = make_views(images, plan, torch.Generator().manual_seed(seed))
    with evaluating(method), torch.no_grad():
        drawn = method.pictures([view.to(device) for view in views])
    return {caption: _visible(batch.float().cpu(), plan) for caption, batch in drawn.items()}


def visible_views(images: Tensor, plan: ViewPlan, seed: int) -> list[Tensor]:
    """One set of views of (N, 3, S, S) uint8 images, as training sees them, again as uint8."""
    views = make_views(images, plan, torch.Generator().manual_seed(seed))
    return [_visible(batch, plan) for batch in views]


def _visible(batch: Tensor, plan: ViewPlan) -> Tensor:
    """(N, 3, H, W) float32, normalised as ``plan`` does it, as uint8."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (plan.mean, plan.std))
    return ((batch * std + mean).clamp(0, 1) * 255).round().byte()


def choose(images: ImageSet, count: int, seed: int) -> Tensor:
    """(count,) indices without repetition, random, one class after the other where there are labels."""
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    if images.labels is None:
        return order[:count]
    labels = images.labels[order]
    turn = torch.empty_like(labels)
    for label in set(labels.tolist()):
        members = labels == label
        turn[members] = torch.arange(int(members.sum()))
    first = order[torch.argsort(turn * len(images.classes) + labels)][:count]
    return first[torch.argsort(images.labels[first], stable=True)]


def _label(images: ImageSet, index: int) -> str | None:
    return None if images.labels is None else images.classes[int(images.labels[index])]


def _picture(images: ImageSet, index: int, *, right: bool | None = None) -> Picture:
    return Picture(_uri(images.images[index]), images.names[index], _label(images, index), right)


def as_pillow(image: Tensor) -> Image.Image:
    """image: (3, S, S) uint8."""
    return Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())


def _uri(image: Tensor) -> str:
    """image: (3, S, S) uint8."""
    picture = as_pillow(image)
    if picture.width > SIDE:
        picture = picture.resize((SIDE, SIDE), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    picture.save(file, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
