"""NT-Xent on a GPU, forward and backward, in Triton (arXiv:2002.05709, eq. 1).

    rows z = [z0; z1] (R = 2N, D), s_ij = <z_i, z_j> / t, own column left out
    lse_i = log sum_{j != i} exp(s_ij)        row loss_i = lse_i - s_{i, i +- N}
    P_ij = exp(s_ij - lse_i), G = P + P^T - 2 [j is i's other view]        dz = G z / (t R)

Grid: one program a block of rows, which walks all blocks of columns; products on the tensor cores, accumulated in
float32. Forward: an online maximum and sum, 2 R^2 D operations. Backward: s is symmetric, so the program that holds
rows i reads P_ji from its own product and the saved lse_j: one recomputed product and one product with z, 4 R^2 D
operations, no atomics. Each row's loss is stored and torch sums them: deterministic. The positive is subtracted
from P before G is rounded to the inputs' dtype, where the two nearly cancel.
Bytes: R D read per block of rows, from the L2 cache; nothing grows with R^2.
Triton and not CUDA: two matrix products with an elementwise function between them.
Reference and tests: fastssl/ops/nt_xent.py, tests/ops/test_nt_xent.py.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK_ROWS = 64
BLOCK_COLUMNS = 64
LAUNCH = {"num_warps": 4, "num_stages": 2}


@triton.jit
def _load_rows(z0, z1, index, n, d, D: tl.constexpr):
    """Rows ``index`` of [z0; z1] as (len(index), D), zeros past the last row and feature."""
    column = tl.arange(0, D)
    first = index < n
    second = (index >= n) & (index < 2 * n)
    inside = (column < d)[None, :]
    # each half is read where it exists, so no address is ever past its end
    a = tl.load(z0 + index.to(tl.int64)[:, None] * d + column[None, :], mask=first[:, None] & inside, other=0.0)
    b = tl.load(z1 + (index - n).to(tl.int64)[:, None] * d + column[None, :], mask=second[:, None] & inside, other=0.0)
    return tl.where(first[:, None], a, b)


@triton.jit
def _forward_kernel(
    z0, z1, row_loss, lse, n, d, scale, D: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, PRECISION: tl.constexpr
):
    i = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    rows = _load_rows(z0, z1, i, n, d, D)
    other_view = tl.where(i < n, i + n, i - n)
    maximum = tl.full((ROWS,), -3.0e38, tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    positive = tl.zeros((ROWS,), tl.float32)
    for start in range(0, 2 * n, COLUMNS):
        j = start + tl.arange(0, COLUMNS)
        s = tl.dot(rows, tl.trans(_load_rows(z0, z1, j, n, d, D)), input_precision=PRECISION) * scale
        positive += tl.sum(tl.where(j[None, :] == other_view[:, None], s, 0.0), 1)
        s = tl.where((j[None, :] == i[:, None]) | (j >= 2 * n)[None, :], float("-inf"), s)
        new_maximum = tl.maximum(maximum, tl.max(s, 1))
        total = total * tl.exp(maximum - new_maximum) + tl.sum(tl.exp(s - new_maximum[:, None]), 1)
        maximum = new_maximum
    log_total = tl.log(total)
    tl.store(lse + i, maximum + log_total, mask=i < 2 * n)
    tl.store(row_loss + i, (maximum - positive) + log_total, mask=i < 2 * n)


@triton.jit
def _backward_kernel(
    z0, z1, lse, grad, grad0, grad1, n, d, scale,
    D: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    i = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    rows = _load_rows(z0, z1, i, n, d, D)
    row_lse = tl.load(lse + i, mask=i < 2 * n, other=float("inf"))
    other_view = tl.where(i < n, i + n, i - n)
    sums = tl.zeros((ROWS, D), tl.float32)
    for start in range(0, 2 * n, COLUMNS):
        j = start + tl.arange(0, COLUMNS)
        columns = _load_rows(z0, z1, j, n, d, D)
        column_lse = tl.load(lse + j, mask=j < 2 * n, other=float("inf"))
        s = tl.dot(rows, tl.trans(columns), input_precision=PRECISION) * scale
        weights = tl.exp(s - row_lse[:, None]) + tl.exp(s - column_lse[None, :])
        weights = tl.where(j[None, :] == other_view[:, None], weights - 2.0, weights)
        pair = (j[None, :] != i[:, None]) & (j < 2 * n)[None, :] & (i < 2 * n)[:, None]
        weights = tl.where(pair, weights, 0.0)
        sums += tl.dot(weights.to(columns.dtype), columns, input_precision=PRECISION)
    sums *= tl.load(grad) * scale / (2 * n)
    column = tl.arange(0, D)
    inside = (column < d)[None, :]
    first, second = i < n, (i >= n) & (i < 2 * n)
    offset = column[None, :]
    tl.store(grad0 + i.to(tl.int64)[:, None] * d + offset, sums, mask=first[:, None] & inside)
    tl.store(grad1 + (i - n).to(tl.int64)[:, None] * d + offset, sums, mask=second[:, None] & inside)


def _constants(z: Tensor) -> dict[str, Any]:
    # float32 stays exact where torch's own products do
    exact = z.dtype == torch.float32 and not torch.backends.cuda.matmul.allow_tf32
    return {
        "D": max(16, triton.next_power_of_2(z.shape[1])),
        "ROWS": BLOCK_ROWS,
        "COLUMNS": BLOCK_COLUMNS,
        "PRECISION": "ieee" if exact else "tf32",
    }


def forward(z0: Tensor, z1: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """z0, z1 (N, D). Returns the loss () and the rows' log-sum-exp (2N,), both float32."""
    z0, z1 = z0.contiguous(), z1.contiguous()
    n, d = z0.shape
    row_loss, lse = (torch.empty(2 * n, dtype=torch.float32, device=z0.device) for _ in range(2))
    grid = (triton.cdiv(2 * n, BLOCK_ROWS),)
    _forward_kernel[grid](z0, z1, row_loss, lse, n, d, 1.0 / temperature, **_constants(z0), **LAUNCH)
    return row_loss.mean(), lse


def backward(grad: Tensor, z0: Tensor, z1: Tensor, lse: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """grad () float32, lse (2N,) of the forward. Returns the gradients of z0 and z1, in their dtype."""
    z0, z1 = z0.contiguous(), z1.contiguous()
    n, d = z0.shape
    grad0, grad1 = torch.empty_like(z0), torch.empty_like(z1)
    grid = (triton.cdiv(2 * n, BLOCK_ROWS),)
    _backward_kernel[grid](
        z0, z1, lse.contiguous(), grad, grad0, grad1, n, d, 1.0 / temperature, **_constants(z0), **LAUNCH
    )
    return grad0, grad1
