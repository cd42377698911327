"""The center of DINO's teacher, from two crops of a batch of 64."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks import where
from benchmarks.harness import OURS, Case, Work
from fastssl import ops
from fastssl.ops.update_center import reference  # type: ignore[attr-defined]

MOMENTUM = 0.9
Update = Callable[[Tensor, Tensor], None]


def ours(center: Tensor, teacher: Tensor) -> None:
    ops.update_center_(center, teacher, MOMENTUM)


def plain(center: Tensor, teacher: Tensor) -> None:
    reference(center, teacher, MOMENTUM)


def sum_first(center: Tensor, teacher: Tensor) -> None:
    """As DINO's repository arranges it, in the teacher's dtype."""
    rows = teacher.flatten(0, 1)
    mean = torch.sum(rows, dim=0) / len(rows)
    center.copy_(center * MOMENTUM + mean * (1 - MOMENTUM))


def on(make: Callable[[], Update], batch: int, prototypes: int, dtype: torch.dtype) -> Work:
    function = make()
    teacher = torch.randn(2, batch, prototypes, generator=where.generator()).to(dtype)
    center = torch.zeros(prototypes)

    def work() -> tuple[Tensor, ...]:
        center.zero_()
        function(center, teacher)
        return (center,)

    return work


def exact(batch: int, prototypes: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    def widened(center: Tensor, teacher: Tensor) -> None:
        center.copy_((1 - MOMENTUM) * teacher.double().flatten(0, 1).mean(0))

    return on(lambda: widened, batch, prototypes, dtype)()


def cases() -> list[Case]:
    functions: dict[str, Callable[[], Update]] = {
        OURS: lambda: ours,
        "torch eager": lambda: plain,
        "torch eager, sum (DINO)": lambda: sum_first,
        "torch.compile": lambda: where.compiled(plain),
    }
    return [
        Case(
            op="update_center",
            shape=f"crops=2 batch={batch} prototypes={prototypes}",
            dtype=str(dtype).removeprefix("torch."),
            providers={name: functools.partial(on, make, batch, prototypes, dtype) for name, make in functions.items()},
            exact=functools.partial(exact, batch, prototypes, dtype),
            bytes_moved=2 * batch * prototypes * dtype.itemsize,
            peak=True,
        )
        for batch, prototypes, dtype in where.sizes(
            cpu=((64, 65536, torch.float32), (64, 65536, torch.bfloat16), (16, 4096, torch.float32)),
            gpu=((64, 65536, torch.float32), (64, 65536, torch.bfloat16)),
            small=((2, 64, torch.bfloat16),),
        )
    ]


# where the kernel is timed against the reference for the choice between them
CROSSOVER = [
    {"rows": rows, "prototypes": k} for rows in (4, 16, 32, 64, 128, 512) for k in (256, 1024, 4096, 16384, 65536)
]


def backend(name: str, rows: int, prototypes: int) -> Work:
    return on(
        lambda: functools.partial(ops.update_center_, momentum=MOMENTUM, backend=name),
        rows // 2,
        prototypes,
        torch.float32,
    )
