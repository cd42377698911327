"""Sinkhorn-Knopp with the sizes of DINOv2 (few samples a GPU, many prototypes) and of SwAV with its queue."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks import rivals, where
from benchmarks.harness import OURS, Case, Work
from fastssl import ops
from fastssl.ops.sinkhorn_knopp import reference  # type: ignore[attr-defined]

TEMP, ITERATIONS = 0.06, 3


def ours(scores: Tensor) -> Tensor:
    return ops.sinkhorn_knopp(scores, temp=TEMP, iterations=ITERATIONS)


def plain(scores: Tensor) -> Tensor:
    return reference(scores, TEMP, ITERATIONS)


def in_place(scores: Tensor) -> Tensor:
    """As DINOv2's repository arranges it, with SwAV's maximum; it has K rows and works in place."""
    q = torch.exp((scores.float() - scores.max()) / TEMP).t()
    prototypes, samples = q.shape
    q /= torch.sum(q)
    for _ in range(ITERATIONS):
        q /= torch.sum(q, dim=1, keepdim=True)
        q /= prototypes
        q /= torch.sum(q, dim=0, keepdim=True)
        q /= samples
    q *= samples
    return q.t()


def on(function: Callable[[Tensor], Tensor], samples: int, prototypes: int, dtype: torch.dtype) -> Work:
    scores = 0.3 * torch.randn(samples, prototypes, generator=where.generator()).to(dtype)
    return lambda: (function(scores),)


def lightly() -> Callable[[Tensor], Tensor]:
    sinkhorn = rivals.load("lightly.loss.swav_loss").sinkhorn
    return lambda scores: sinkhorn(scores, iterations=ITERATIONS, epsilon=TEMP)


def cases() -> list[Case]:
    functions: dict[str, Callable[[], Callable[[Tensor], Tensor]]] = {
        OURS: lambda: ours,
        "torch eager": lambda: plain,
        "torch eager, in place (DINOv2)": lambda: in_place,
        "torch.compile": lambda: where.compiled(plain),
        "torch.compile, in place": lambda: where.compiled(in_place),
        "lightly sinkhorn": lightly,
    }

    def make(get: Callable[[], Callable[[Tensor], Tensor]], *shape_and_dtype: int | torch.dtype) -> Work:
        return on(get(), *shape_and_dtype)  # type: ignore[arg-type]

    return [
        Case(
            op="sinkhorn_knopp",
            shape=f"samples={samples} prototypes={prototypes} iterations={ITERATIONS}",
            dtype=str(dtype).removeprefix("torch."),
            providers={
                name: functools.partial(make, get, samples, prototypes, dtype) for name, get in functions.items()
            },
            exact=lambda samples=samples, prototypes=prototypes, dtype=dtype: on(
                lambda scores: plain(scores.double()), samples, prototypes, dtype
            )(),
            # scores read once, the result written once
            bytes_moved=samples * prototypes * (dtype.itemsize + 4),
            exponentials=samples * prototypes,
            peak=prototypes == 65536 and dtype == torch.float32,
        )
        for samples, prototypes, dtype in where.sizes(
            cpu=(
                (128, 65536, torch.float32),
                (128, 65536, torch.bfloat16),
                (4096, 3000, torch.float32),
                (64, 1024, torch.float32),
            ),
            gpu=((128, 65536, torch.float32), (128, 65536, torch.bfloat16), (4096, 3000, torch.float32)),
            small=((4, 64, torch.bfloat16),),
        )
    ]
