"""The annealed mean of 313 bins."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks import where
from benchmarks.harness import OURS, Case, Work
from fastssl import ops
from fastssl.ops.decode_ab import reference  # type: ignore[attr-defined]

TEMPERATURE = 0.38


@where.kept
def inputs(n: int, size: int) -> Tensor:
    return 3 * torch.randn(n, 313, size, size, generator=where.generator())


def ours(n: int, size: int) -> Work:
    logits, bins = inputs(n, size), ops.gamut_bins()
    return lambda: (ops.decode_ab(logits, bins, temperature=TEMPERATURE),)


def plain(make: Callable[[], Callable[..., Tensor]], n: int, size: int) -> Work:
    logits, bins, function = inputs(n, size), ops.gamut_bins(), make()
    return lambda: (function(logits, bins, TEMPERATURE),)


def convolution(logits: Tensor, bins: Tensor, temperature: float) -> Tensor:
    """The paper's own decoder: a softmax, and a convolution whose weights are the bins."""
    return torch.nn.functional.conv2d((logits / temperature).softmax(dim=1), bins.T[:, :, None, None])


def cases() -> list[Case]:
    makers = {
        OURS: ours,
        "reference": functools.partial(plain, lambda: reference),
        "torch softmax and conv2d": functools.partial(plain, lambda: convolution),
        "torch.compile": functools.partial(plain, lambda: where.compiled(reference)),
        "torch.compile, conv2d": functools.partial(plain, lambda: where.compiled(convolution)),
    }
    return [
        Case(
            op="decode_ab",
            shape=f"{n} x 313 x {size} x {size}",
            dtype="float32",
            providers={name: functools.partial(make, n, size) for name, make in makers.items()},
            exact=functools.partial(
                lambda n, size: (reference(inputs(n, size).double(), ops.gamut_bins(), TEMPERATURE),), n, size
            ),
            bytes_moved=n * size**2 * 4 * (313 + 2),
            peak=n == 32,
        )
        for n, size in where.sizes(cpu=((1, 56), (32, 56)), gpu=((32, 56), (256, 56)), small=((2, 4),))
    ]
