"""NT-Xent's Triton kernels, interpreted, against the formula in float64."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import normalize

from fastssl.ops.nt_xent import reference
from fastssl.ops.triton import nt_xent as kernels


def run(z0: torch.Tensor, z1: torch.Tensor, temperature: float) -> tuple[torch.Tensor, ...]:
    loss, lse = kernels.forward(z0, z1, temperature)
    return loss, *kernels.backward(torch.tensor(2.0), z0, z1, lse, temperature).chunk(2)


def exact(z0: torch.Tensor, z1: torch.Tensor, temperature: float) -> tuple[torch.Tensor, ...]:
    z0, z1 = z0.double().requires_grad_(), z1.double().requires_grad_()
    loss = reference(z0, z1, temperature)
    (2 * loss).backward()
    return loss.detach(), z0.grad, z1.grad


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 5e-7), (torch.float16, 1e-3)], ids=str)
@pytest.mark.parametrize(("n", "d"), [(1, 1), (2, 3), (33, 16), (61, 100), (64, 32), (101, 128), (70, 200)])
@pytest.mark.parametrize("temperature", [0.02, 0.2, 1.0])
def test_equals_the_formula(n: int, d: int, dtype: torch.dtype, bound: float, temperature: float) -> None:
    generator = torch.Generator().manual_seed(n)
    z0 = torch.randn(n, d, generator=generator)
    z0, z1 = (normalize(z, dim=1).to(dtype) for z in (z0, z0 + 0.7 * torch.randn(n, d, generator=generator)))
    for got, want in zip(run(z0, z1, temperature), exact(z0, z1, temperature), strict=True):
        # a similarity's rounding is seen through 1/t, and so is a gradient, of weights up to 2 over 2N rows
        size = 1.0 if want.dim() == 0 else 1 / (n * temperature)
        assert (got.double() - want).abs().max() <= bound / temperature * max(want.abs().max().item(), size)


def guarded(values: torch.Tensor, guard: float) -> tuple[torch.Tensor, torch.Tensor]:
    """(all memory, the part that holds ``values``): before and after them stands ``guard``, 128 times each."""
    memory = torch.full((values.numel() + 256,), guard)
    inside = memory[128:-128].view_as(values)
    return memory, inside.copy_(values)


def test_neither_reads_nor_writes_beyond_the_ends() -> None:
    """The kernels' inputs lie between NaNs, their outputs between canaries."""
    rows, d = 74, 20
    z0, z1 = normalize(torch.randn(2, rows // 2, d), dim=2)
    fixed = kernels.constants(torch.float32, d)
    launch = (-(-rows // fixed["ROWS"]),)
    _, z = guarded(torch.cat([z0, z1]), float("nan"))
    loss_memory, row_loss = guarded(torch.zeros(rows), -7.0)
    lse_memory, lse = guarded(torch.zeros(2, rows), -7.0)
    kernels._forward_kernel[launch](z, row_loss, lse, rows, d, 2.0, **fixed)
    _, lse_read = guarded(lse, float("nan"))
    grads_memory, grads = guarded(torch.zeros(rows, d), -7.0)
    kernels._backward_kernel[launch](z, lse_read, torch.tensor(2.0), grads, rows, d, 2.0, **fixed)
    for memory in (loss_memory, lse_memory, grads_memory):
        assert memory[:128].eq(-7).all()
        assert memory[-128:].eq(-7).all()
    for got, want in zip((row_loss.mean(), *grads.chunk(2)), exact(z0, z1, 0.5), strict=True):
        torch.testing.assert_close(got.double(), want, rtol=1e-4, atol=1e-6)


def test_not_a_number_shows() -> None:
    z0, z1 = torch.randn(40, 8), torch.randn(40, 8)
    z0[3, 3] = float("nan")
    assert torch.isnan(kernels.forward(z0, z1, 0.5)[0])
