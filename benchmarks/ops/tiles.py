"""Tiles of a batch: a jigsaw puzzle of nine (crops of 225 pixels, tiles of 64), and a pair for relative positions."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import instance_norm

from benchmarks import where
from benchmarks.harness import OURS, Case, Work
from fastssl import ops
from fastssl.ops.tiles import reference  # type: ignore[attr-defined]

SIDE, GRID, TILE, JITTER = 225, 3, 64, 5
Inputs = tuple[Tensor, Tensor, Tensor]


@where.kept
def inputs(n: int, taken: int) -> Inputs:
    generator = where.generator()
    images = torch.rand(n, 3, SIDE, SIDE, generator=generator)
    order = torch.stack([torch.randperm(GRID**2, generator=generator)[:taken] for _ in range(n)])
    return images, order, torch.randint(2 * JITTER + 1, (n, GRID**2, 2), generator=generator)


def ours(n: int, taken: int, normalize: bool) -> Work:
    images, order, offsets = inputs(n, taken)
    return lambda: (ops.tiles(images, GRID, order, size=TILE, offsets=offsets, normalize=normalize),)


def torch_form(make: Callable[..., Tensor], compiled: bool, n: int, taken: int, normalize: bool) -> Work:
    given, function = inputs(n, taken), where.compiled(make) if compiled else make
    return lambda: (function(*given, GRID, GRID, TILE, TILE, normalize),)


def slices(
    images: Tensor, order: Tensor, offsets: Tensor, rows: int, columns: int, height: int, width: int, normalize: bool
) -> Tensor:
    """A slice a tile, all stacked, and torch's instance norm: what a loader's transform does to each image."""
    cell = images.shape[-1] // columns
    taken = []
    for image, wanted, places in zip(images, order.tolist(), offsets.tolist(), strict=True):
        for number in wanted:
            top = number // columns * cell + places[number][0]
            left = number % columns * cell + places[number][1]
            taken.append(image[:, top : top + height, left : left + width])
    cut = torch.stack(taken)
    return (instance_norm(cut) if normalize else cut).view(*order.shape, *cut.shape[1:])


def exact(n: int, taken: int, normalize: bool) -> tuple[Tensor, ...]:
    images, order, offsets = inputs(n, taken)
    return (reference(images.double(), order, offsets, GRID, GRID, TILE, TILE, normalize),)


def cases() -> list[Case]:
    makers: dict[str, Callable[..., Work]] = {
        OURS: ours,
        "reference": functools.partial(torch_form, reference, False),
        "torch.compile": functools.partial(torch_form, reference, True),
        "torch slices": functools.partial(torch_form, slices, False),
    }
    return [
        Case(
            op="tiles",
            shape=f"{taken} of 3 x 3 tiles of {n} images{', normalized' if normalize else ''}",
            dtype="float32",
            providers={name: functools.partial(make, n, taken, normalize) for name, make in makers.items()},
            exact=functools.partial(exact, n, taken, normalize),
            bytes_moved=2 * 4 * 3 * TILE**2 * n * taken,
        )
        for n, taken, normalize in where.sizes(
            cpu=((64, 9, True), (64, 9, False), (64, 2, True), (1, 9, True)),
            gpu=((256, 9, True), (256, 9, False), (256, 2, True)),
            small=((1, 9, True),),
        )
    ]
