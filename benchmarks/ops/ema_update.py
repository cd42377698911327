"""The exponential moving average over the parameters of a ResNet-50."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from benchmarks.harness import OURS, Case, Work
from fastssl import models, ops
from fastssl.ops.ema_update import reference  # type: ignore[attr-defined]

MOMENTUM = 0.999


@functools.cache
def shapes() -> tuple[torch.Size, ...]:
    return tuple(parameter.shape for parameter in models.get("resnet50")().parameters())


def ours(targets: list[Tensor], sources: list[Tensor]) -> None:
    ops.ema_update_(targets, sources, MOMENTUM)


def foreach_lerp(targets: list[Tensor], sources: list[Tensor]) -> None:
    torch._foreach_lerp_(targets, sources, 1 - MOMENTUM)


def foreach_mul_add(targets: list[Tensor], sources: list[Tensor]) -> None:
    torch._foreach_mul_(targets, MOMENTUM)
    torch._foreach_add_(targets, sources, alpha=1 - MOMENTUM)


def loop(targets: list[Tensor], sources: list[Tensor]) -> None:
    for target, source in zip(targets, sources, strict=True):
        target.mul_(MOMENTUM).add_(source, alpha=1 - MOMENTUM)


def plain(targets: list[Tensor], sources: list[Tensor]) -> None:
    reference(targets, sources, MOMENTUM, [])


def on(function: Callable[[list[Tensor], list[Tensor]], None], source_dtype: torch.dtype) -> Work:
    generator = torch.Generator().manual_seed(0)
    targets = [torch.randn(shape, generator=generator) for shape in shapes()]
    sources = [torch.randn(shape, generator=generator).to(source_dtype) for shape in shapes()]

    def work() -> Sequence[Tensor]:
        with torch.no_grad():
            function(targets, sources)
        return targets

    return work


def cases() -> list[Case]:
    functions = {OURS: ours, "torch mul_+add_ loop": loop, "torch lerp loop": plain}
    same = {**functions, "torch _foreach_lerp_": foreach_lerp, "torch _foreach_mul_+add_": foreach_mul_add}
    elements = sum(shape.numel() for shape in shapes())
    return [
        Case(
            op="ema_update",
            shape=f"{len(shapes())} tensors, {elements / 1e6:.1f}M elements",
            dtype=f"float32 from {str(dtype).removeprefix('torch.')}",
            providers={name: functools.partial(on, function, dtype) for name, function in those.items()},
            bytes_moved=elements * (8 + dtype.itemsize),
            peak=True,
        )
        # _foreach takes no mixed dtypes
        for dtype, those in ((torch.float32, same), (torch.bfloat16, functions))
    ]
