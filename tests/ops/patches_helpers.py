"""What the tests of take_patches and restore_patches share."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
SHAPES = [(1, 1, 1, 1), (1, 5, 1, 3), (2, 7, 7, 16), (33, 10, 3, 123), (5, 196, 49, 252), (3, 300, 75, 507)]  # B L K D


def permutations(batch: int, length: int, seed: int = 0) -> Tensor:
    """(batch, length) int64, a permutation a sample."""
    drawn = torch.rand(batch, length, generator=torch.Generator().manual_seed(seed), device="cpu")
    return drawn.argsort(1).to(torch.get_default_device())


def repeating(limit: int, *shape: int) -> Tensor:
    """int64 in [0, limit), some of them more than once."""
    drawn = torch.randint(limit, shape, generator=torch.Generator().manual_seed(0), device="cpu")
    return drawn.to(torch.get_default_device())


def normal(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    drawn = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), device="cpu")
    return drawn.to(torch.get_default_device(), dtype)


def results(function: Callable[..., Tensor], tensors: Sequence[Tensor | None], grad: Tensor) -> list[Tensor]:
    """The output and the gradients of all tensors, each of which is a leaf of its own."""
    leaves = [None if t is None else t.detach().clone().requires_grad_() for t in tensors]
    out = function(*leaves)
    out.backward(grad.to(out.dtype))
    return [out.detach(), *(leaf.grad for leaf in leaves if leaf is not None)]


def assert_as_good_as_plain_torch(
    ours: Callable[..., Tensor], plain: Callable[..., Tensor], tensors: Sequence[Tensor | None], grad: Tensor
) -> None:
    """Dtypes of plain torch, and at most twice its error, against float64."""
    got, rival = results(ours, tensors, grad), results(plain, tensors, grad)
    exact = results(plain, [None if t is None else t.double() for t in tensors], grad.double())
    for x, plain_x, want in zip(got, rival, exact, strict=True):
        assert x.dtype == plain_x.dtype
        assert x.shape == plain_x.shape
        if x.numel() == 0:
            continue
        error, rival_error = ((y.double() - want).abs().max().item() for y in (x, plain_x))
        # half a unit in the last place is what any rounding may cost
        assert error <= 2 * rival_error + torch.finfo(x.dtype).eps * want.abs().max().item() / 2
