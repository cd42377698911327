"""A few images, drawn by a seed, and their views as an engine makes them for training."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass

import torch
from torch import Tensor

from fastssl.data import engines
from fastssl.data.decode import UnreadableError, decode_full
from fastssl.data.engines import Engine
from fastssl.data.images import ImageSet, files_of
from fastssl.data.loader import Schedule
from fastssl.data.plans import ViewPlan
from fastssl.data.sources import Entry
from fastssl.errors import UserError


@dataclass(frozen=True)
class Sample:
    """N images and their views.

    Args:
        chosen: (N,) int64, which of the data set they are.
        images: N tensors (3, H, W) uint8: the pixels that the engine cuts views from.
        views: ``plan.total`` tensors (N, 3, size, size) uint8, as training gets them but for the normalisation.
        normalized: the same in float32, as training gets them.
    """

    chosen: Tensor
    images: list[Tensor]
    views: list[Tensor]
    normalized: list[Tensor]


def draw_sample(data: ImageSet, plan: ViewPlan, *, rows: int, seed: int, engine: Engine = "native") -> Sample:
    """``rows`` images of ``data``, each with a set of views: those of a first epoch on these images alone.

    Args:
        data: the images; engines that read files read those of its names, and leave out what they cannot.
        plan: how views are made.
        rows: how many images, at most.
        seed: of which images, and of their views; all engines draw alike.
        engine: makes the views, on the CPU.
    Raises:
        UserError: if the engine cannot serve this data, is missing, or none of the images can be read.
    """
    chosen = choose(data, rows, seed)
    if engine in engines.IN_MEMORY:
        images = list(data.images[chosen])
    else:
        whole = _whole(data.subset(chosen), engine)
        chosen = chosen[torch.tensor([image is not None for image in whole])]
        images = [image for image in whole if image is not None]
    if not images:
        raise UserError(
            f"none of {rows} images drawn from {data.source!r} can be read: give another seed, or more rows"
        )
    few = data.subset(chosen)
    with closing(engines.open_loader(engine, few, plan, len(few), seed, torch.device("cpu"))) as loader:
        (views,) = loader.epoch(0)
    ((_, order),) = Schedule(len(few), len(few), seed).chosen(0)
    views = [view[order.argsort()] for view in views]
    return Sample(chosen, images, [visible(view, plan) for view in views], views)


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


def visible(batch: Tensor, plan: ViewPlan) -> Tensor:
    """(N, 3, H, W) float32, normalised as ``plan`` does it, as uint8."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (plan.mean, plan.std))
    return ((batch * std + mean).clamp(0, 1) * 255).round().byte()


def _whole(data: ImageSet, engine: Engine) -> list[Tensor | None]:
    """The pixels of each file, (3, H, W) uint8; None where it cannot be read."""

    def decoded(entry: Entry) -> Tensor | None:
        try:
            return torch.tensor(decode_full(entry.read())).movedim(2, 0)
        except UnreadableError:
            return None

    with closing(files_of(data, engine).listing) as listing:
        return [decoded(entry) for entry in listing.entries]
