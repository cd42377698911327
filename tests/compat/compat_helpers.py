"""What the tests of other libraries' names share: random rows, gradients, and how near both results must be."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

DTYPES = [torch.float32, torch.float64]


def rows(seed: int, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def drawn(seed: int, *most: int) -> list[int]:
    """Random sizes from 1 on."""
    generator = torch.Generator().manual_seed(seed)
    return [int(torch.randint(1, last + 1, (), generator=generator)) for last in most]


def with_gradients(function: Callable[..., Tensor], *inputs: Tensor) -> tuple[Tensor, ...]:
    leaves = [x.clone().requires_grad_() for x in inputs]
    result = function(*leaves)
    result.sum().backward()
    return result.detach(), *(x.grad for x in leaves)


def assert_alike(got: Iterable[Tensor], want: Iterable[Tensor]) -> None:
    """To float64's round-off where theirs is in float64, which shows what was computed in less."""
    for x, y in zip(got, want, strict=True):
        double = y.dtype == torch.float64
        torch.testing.assert_close(x, y, rtol=1e-9 if double else 2e-5, atol=1e-11 if double else 2e-6)


def arguments(function: object) -> list[tuple[str, object]]:
    """Names and defaults of its arguments, in their order."""
    return [(p.name, p.default) for p in inspect.signature(function).parameters.values()]
