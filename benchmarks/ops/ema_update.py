"""The exponential moving average over the parameters of a ResNet-50 with its 1000 classes."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from benchmarks import rivals, where
from benchmarks.harness import OURS, Case, Work
from fastssl import models, ops
from fastssl.ops.ema_update import reference  # type: ignore[attr-defined]

MOMENTUM = 0.999


Shapes = tuple[torch.Size, ...]


@functools.cache
def resnet50() -> Shapes:
    encoder = models.get("resnet50")()
    return (*(parameter.shape for parameter in encoder.parameters()), torch.Size((1000, 2048)), torch.Size((1000,)))


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


def tensors(shapes: Shapes, source_dtype: torch.dtype) -> tuple[list[Tensor], list[Tensor]]:
    generator = where.generator()
    targets = [torch.randn(shape, generator=generator) for shape in shapes]
    return targets, [torch.randn(shape, generator=generator).to(source_dtype) for shape in shapes]


def on(function: Callable[[list[Tensor], list[Tensor]], None], shapes: Shapes, source_dtype: torch.dtype) -> Work:
    targets, sources = tensors(shapes, source_dtype)

    def work() -> Sequence[Tensor]:
        with torch.no_grad():
            function(targets, sources)
        return targets

    return work


def modules(shapes: Shapes, source_dtype: torch.dtype) -> tuple[torch.nn.Module, torch.nn.Module]:
    """Both lists as the parameters of modules, which the libraries' classes take."""
    targets, sources = (torch.nn.ParameterList(each) for each in tensors(shapes, source_dtype))
    return targets, sources


def swa_utils(shapes: Shapes, source_dtype: torch.dtype) -> Work:
    target, source = modules(shapes, source_dtype)
    average = torch.optim.swa_utils.AveragedModel(
        target, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(MOMENTUM)
    )
    average.update_parameters(target)  # the first call copies
    return lambda: average.update_parameters(source)


def timm(shapes: Shapes, source_dtype: torch.dtype) -> Work:
    target, source = modules(shapes, source_dtype)
    average = rivals.load("timm.utils").ModelEmaV3(target, decay=MOMENTUM)
    return lambda: average.update(source)


def cases() -> list[Case]:
    functions = {
        OURS: ours,
        "torch mul_+add_ loop": loop,
        "torch lerp loop": plain,
        "torch _foreach_lerp_": foreach_lerp,
        "torch _foreach_mul_+add_": foreach_mul_add,
    }
    makers: dict[str, Callable[[Shapes, torch.dtype], Work]] = {
        **{name: functools.partial(on, function) for name, function in functions.items()},
        "torch.compile": lambda shapes, dtype: on(where.compiled(plain), shapes, dtype),
        "torch swa_utils AveragedModel": swa_utils,
        "timm ModelEmaV3": timm,
    }
    shapes = where.sizes(cpu=resnet50, small=lambda: (torch.Size((64, 3, 7, 7)), torch.Size((64,))))()
    elements = sum(shape.numel() for shape in shapes)
    return [
        Case(
            op="ema_update",
            shape=f"{len(shapes)} tensors, {elements / 1e6:.1f}M elements",
            dtype=f"float32 from {str(dtype).removeprefix('torch.')}",
            providers={name: functools.partial(make, shapes, dtype) for name, make in makers.items()},
            bytes_moved=elements * (8 + dtype.itemsize),
            peak=True,
        )
        for dtype in (torch.float32, torch.bfloat16)
    ]
