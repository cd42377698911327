"""Label propagation at the size of DAVIS: features of a 480p frame in patches of 16, from 8 frames."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import interpolate, normalize

from benchmarks import where
from benchmarks.harness import OURS, Case, Work
from fastssl import ops
from fastssl.ops.propagate_labels import reference  # type: ignore[attr-defined]

HEIGHT, WIDTH, CLASSES, TEMPERATURE = 30, 54, 4, 0.1


@where.kept
def inputs(frames: int, d: int) -> tuple[Tensor, Tensor, Tensor]:
    """Features that vary smoothly over a frame and a little from one to the next."""
    generator = where.generator()
    scene = interpolate(torch.randn(1, d, 10, 18, generator=generator), (HEIGHT, WIDTH), mode="bicubic")
    features = scene + 0.3 * torch.randn(frames + 1, d, HEIGHT, WIDTH, generator=generator)
    return features[0], features[1:], torch.rand(frames, CLASSES, HEIGHT, WIDTH, generator=generator)


@where.kept
def window(radius: int) -> Tensor:
    """(HW, HW), True within the radius: made once, as DINO's script does."""
    y, x = (c.flatten() for c in torch.meshgrid(torch.arange(HEIGHT), torch.arange(WIDTH), indexing="ij"))
    return ((y[:, None] - y).abs() <= radius) & ((x[:, None] - x).abs() <= radius)


def dense(target: Tensor, context: Tensor, labels: Tensor, inside: Tensor | None, k: int) -> Tensor:
    """All affinities at once, a topk, and the labels gathered: no exponential but of what counts."""
    queries = normalize(target.flatten(1), dim=0).T
    keys = normalize(context.flatten(2), dim=1).movedim(1, 0).flatten(1)
    affinity = queries @ keys
    if inside is not None:
        affinity = affinity.masked_fill(~inside.repeat(1, len(context)), float("-inf"))
    top, pixels = affinity.topk(k, dim=1)
    weights = (top / TEMPERATURE).softmax(dim=1)
    chosen = labels.flatten(2).movedim(0, 1).flatten(1)[:, pixels]
    return (chosen * weights).sum(-1).view(-1, HEIGHT, WIDTH)


def as_dino(target: Tensor, context: Tensor, labels: Tensor, inside: Tensor | None, k: int) -> Tensor:
    """The order of operations of DINO's script: exponentials, mask, topk as a threshold, a product with the labels."""
    queries = normalize(target.flatten(1), dim=0).T
    keys = normalize(context.flatten(2), dim=1)
    affinity = torch.exp((queries @ keys) / TEMPERATURE)
    if inside is not None:
        affinity = affinity * inside
    affinity = affinity.transpose(2, 1).reshape(-1, queries.shape[0])
    least = affinity.topk(k, dim=0).values.min(dim=0).values
    affinity = affinity.masked_fill(affinity < least, 0)
    affinity = affinity / affinity.sum(dim=0, keepdim=True)
    return (labels.movedim(1, 0).flatten(1) @ affinity).view(-1, HEIGHT, WIDTH)


def ours(frames: int, d: int, radius: int | None, k: int) -> Work:
    given = inputs(frames, d)
    return lambda: (ops.propagate_labels(*given, radius=radius, k=k, temperature=TEMPERATURE),)


def eager(frames: int, d: int, radius: int | None, k: int) -> Work:
    given = inputs(frames, d)
    return lambda: (reference(*given, radius, k, TEMPERATURE),)


def torch_form(
    function: Callable[..., Tensor], compiled: bool, frames: int, d: int, radius: int | None, k: int
) -> Work:
    given, inside = inputs(frames, d), None if radius is None else window(radius)
    run = where.compiled(function) if compiled else function
    return lambda: (run(*given, inside, k),)


def exact(frames: int, d: int, radius: int | None, k: int) -> tuple[Tensor, ...]:
    return (reference(*(x.double() for x in inputs(frames, d)), radius, k, TEMPERATURE),)


def pairs(frames: int, radius: int | None) -> int:
    """Of target and context pixels in reach of each other."""
    reach = HEIGHT * WIDTH * HEIGHT * WIDTH if radius is None else int(window(radius).sum())
    return frames * reach


def cases() -> list[Case]:
    makers: dict[str, Callable[..., Work]] = {
        OURS: ours,
        "reference": eager,
        "torch dense": functools.partial(torch_form, dense, False),
        "torch.compile, dense": functools.partial(torch_form, dense, True),
        "torch as DINO": functools.partial(torch_form, as_dino, False),
        "torch.compile, as DINO": functools.partial(torch_form, as_dino, True),
    }
    return [
        Case(
            op="propagate_labels",
            shape=f"{frames} frames of {HEIGHT} x {WIDTH} d={d} radius={radius} k={k}",
            dtype="float32",
            providers={name: functools.partial(make, frames, d, radius, k) for name, make in makers.items()},
            exact=functools.partial(exact, frames, d, radius, k),
            operations=2.0 * d * pairs(frames, radius),
            peak=(d, radius) == (256, 12),
        )
        for frames, d, radius, k in where.sizes(
            cpu=((1, 192, 12, 5), (8, 192, 12, 5), (8, 256, 12, 5), (8, 256, None, 5)),
            gpu=((8, 256, 12, 5), (8, 256, None, 5)),
            small=((1, 4, 2, 5),),
        )
    ]
