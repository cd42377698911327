"""MoCo's queue of 65536 keys: one process's batch, and one gathered from sixteen; keys normalised on the way in."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import normalize

from benchmarks import where
from benchmarks.harness import OURS, Case, Work
from fastssl import ops
from fastssl.ops.enqueue import reference  # type: ignore[attr-defined]

LENGTH, FEATURES = 65536, 128
Enqueue = Callable[[Tensor, Tensor, Tensor], None]


def ours(queue: Tensor, cursor: Tensor, keys: Tensor) -> None:
    ops.enqueue_(queue, cursor, keys, normalize=True)


def plain(queue: Tensor, cursor: Tensor, keys: Tensor) -> None:
    with torch.no_grad():
        reference(queue, cursor, keys, True)


def slices(queue: Tensor, cursor: Tensor, keys: Tensor) -> None:
    """As MoCo's repository arranges it: reads the cursor, copies into one slice, or two where it wraps."""
    with torch.no_grad():
        keys = normalize(keys, dim=1)
        start, count = int(cursor), len(keys)
        first = min(count, len(queue) - start)
        queue[start : start + first] = keys[:first]
        if first < count:
            queue[: count - first] = keys[first:]
        cursor.fill_((start + count) % len(queue))


def on(make: Callable[[], Enqueue], count: int, queue_dtype: torch.dtype) -> Work:
    function = make()
    generator = where.generator()
    queue, cursor = torch.zeros(LENGTH, FEATURES, dtype=queue_dtype), torch.zeros((), dtype=torch.int64)
    keys = torch.randn(count, FEATURES, generator=generator)
    # writes are judged where the first ones went, whatever a provider was called how often
    start = LENGTH - count // 2

    def work() -> tuple[Tensor, ...]:
        cursor.fill_(start)
        function(queue, cursor, keys)
        return queue[start:], queue[: count - count // 2]

    return work


def exact(count: int) -> tuple[Tensor, ...]:
    def widened(queue: Tensor, cursor: Tensor, keys: Tensor) -> None:
        plain(queue, cursor, keys.double())

    return on(lambda: widened, count, torch.float64)()


def cases() -> list[Case]:
    functions: dict[str, Callable[[], Enqueue]] = {
        OURS: lambda: ours,
        "torch eager": lambda: plain,
        "torch eager, slices (MoCo)": lambda: slices,
        "torch.compile": lambda: where.compiled(plain),
    }
    return [
        Case(
            op="enqueue",
            shape=f"keys={count} queue={LENGTH} d={FEATURES}",
            dtype=f"{str(dtype).removeprefix('torch.')} from float32",
            providers={name: functools.partial(on, make, count, dtype) for name, make in functions.items()},
            exact=functools.partial(exact, count),
            bytes_moved=count * FEATURES * (4 + dtype.itemsize),
        )
        for count, dtype in where.sizes(
            cpu=((256, torch.float32), (4096, torch.float32), (4096, torch.bfloat16), (32768, torch.float32)),
            gpu=((256, torch.float32), (4096, torch.bfloat16), (32768, torch.float32)),
            small=((16, torch.bfloat16),),
        )
    ]
