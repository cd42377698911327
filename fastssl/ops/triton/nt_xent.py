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


@triton.jit
def _load(z, start, feature, rows, d, ROWS: tl.constexpr, FEATURES: tl.constexpr, WHOLE: tl.constexpr):
    """Rows start .. start + ROWS and features feature .. feature + FEATURES of z, zeros past the last of each."""
    i, k = start + tl.arange(0, ROWS), feature + tl.arange(0, FEATURES)
    inside = (i < rows)[:, None]
    if not WHOLE:
        inside = inside & (k < d)[None, :]
    return tl.load(z + i.to(tl.int64)[:, None] * d + k[None, :], mask=inside, other=0.0)


@triton.jit
def _similarities(
    z, first, second, rows, d, scale,
    D: tl.constexpr, CHUNK: tl.constexpr, WHOLE: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """s of ROWS rows from ``first`` with COLUMNS from ``second``, over chunks of features that fit the registers."""
    s = tl.zeros((ROWS, COLUMNS), tl.float32)
    for feature in range(0, D, CHUNK):
        a = _load(z, first, feature, rows, d, ROWS, CHUNK, WHOLE)
        b = _load(z, second, feature, rows, d, COLUMNS, CHUNK, WHOLE)
        s = tl.dot(a, tl.trans(b), s, input_precision=PRECISION)
    return s * scale


@triton.jit
def _forward_kernel(
    z, row_loss, lse, rows, d, scale,
    D: tl.constexpr, CHUNK: tl.constexpr, WHOLE: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    first = tl.program_id(0) * ROWS
    i = first + tl.arange(0, ROWS)
    other_view = tl.where(i < rows // 2, i + rows // 2, i - rows // 2)
    maximum = tl.full((ROWS,), -3.0e38, tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    positive = tl.zeros((ROWS,), tl.float32)
    for block in range(tl.cdiv(rows, COLUMNS)):
        j = block * COLUMNS + tl.arange(0, COLUMNS)
        s = _similarities(z, first, block * COLUMNS, rows, d, scale, D, CHUNK, WHOLE, ROWS, COLUMNS, PRECISION)
        positive += tl.sum(tl.where(j[None, :] == other_view[:, None], s, 0.0), 1)
        s = tl.where((j[None, :] == i[:, None]) | (j >= rows)[None, :], float("-inf"), s)
        new_maximum = tl.maximum(maximum, tl.max(s, 1))
        total = total * tl.exp(maximum - new_maximum) + tl.sum(tl.exp(s - new_maximum[:, None]), 1)
        maximum = new_maximum
    log_total = tl.log(total)
    tl.store(lse + i, maximum, mask=i < rows)
    tl.store(lse + rows + i, log_total, mask=i < rows)
    tl.store(row_loss + i, (maximum - positive) + log_total, mask=i < rows)


@triton.jit
def _backward_kernel(
    z, lse, grad, grads, rows, d, scale,
    D: tl.constexpr, CHUNK: tl.constexpr, WHOLE: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    first = tl.program_id(0) * ROWS
    i = first + tl.arange(0, ROWS)
    # the log-sum-exp in its two parts: rounding their sum would lose what tells rows apart
    row_maximum = tl.load(lse + i, mask=i < rows, other=float("inf"))
    row_log = tl.load(lse + rows + i, mask=i < rows, other=0.0)
    other_view = tl.where(i < rows // 2, i + rows // 2, i - rows // 2)
    sums = tl.zeros((ROWS, D), tl.float32)
    for block in range(tl.cdiv(rows, COLUMNS)):
        j = block * COLUMNS + tl.arange(0, COLUMNS)
        column_maximum = tl.load(lse + j, mask=j < rows, other=float("inf"))
        column_log = tl.load(lse + rows + j, mask=j < rows, other=0.0)
        s = _similarities(z, first, block * COLUMNS, rows, d, scale, D, CHUNK, WHOLE, ROWS, COLUMNS, PRECISION)
        weights = tl.exp(s - row_maximum[:, None] - row_log[:, None])
        weights += tl.exp(s - column_maximum[None, :] - column_log[None, :])
        weights = tl.where(j[None, :] == other_view[:, None], weights - 2.0, weights)
        # rows past the end weigh nothing by their infinite maximum; their columns are zeros, and 0 * exp(s) must be 0
        weights = tl.where((j[None, :] == i[:, None]) | (j >= rows)[None, :], 0.0, weights)
        columns = _load(z, block * COLUMNS, 0, rows, d, COLUMNS, D, WHOLE)
        sums = tl.dot(weights.to(columns.dtype), columns, sums, input_precision=PRECISION)
    sums *= tl.load(grad) * scale / rows
    column, inside = tl.arange(0, D), (i < rows)[:, None]
    if not WHOLE:
        inside = inside & (column < d)[None, :]
    tl.store(grads + i.to(tl.int64)[:, None] * d + column[None, :], sums, mask=inside)


def constants(dtype: torch.dtype, d: int) -> dict[str, Any]:
    """Compile-time constants and launch options of both kernels: the largest blocks that stay in registers."""
    features = max(16, triton.next_power_of_2(d))
    shared = {"D": features, "WHOLE": features == d, "COLUMNS": 32}
    if dtype != torch.float32:
        rows = 64 if features <= 128 else 32
        return {**shared, "CHUNK": features, "ROWS": rows, "PRECISION": "tf32", "num_warps": 8, "num_stages": 2}
    # three tf32 products hold float32's accuracy on the tensor cores; one, where torch's own products may use it
    precision = "tf32" if torch.backends.cuda.matmul.allow_tf32 else "tf32x3"
    return {**shared, "CHUNK": 16, "ROWS": 32, "PRECISION": precision, "num_warps": 8, "num_stages": 1}


def forward(z0: Tensor, z1: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """z0, z1 (N, D). Returns the loss () and the rows' log-sum-exp in two parts (2, 2N), float32."""
    z = torch.cat([z0, z1])
    rows, d = z.shape
    row_loss, lse = (torch.empty(shape, dtype=torch.float32, device=z.device) for shape in (rows, (2, rows)))
    fixed = constants(z.dtype, d)
    _forward_kernel[(triton.cdiv(rows, fixed["ROWS"]),)](z, row_loss, lse, rows, d, 1.0 / temperature, **fixed)
    return row_loss.mean(), lse


def backward(grad: Tensor, z0: Tensor, z1: Tensor, lse: Tensor, temperature: float) -> Tensor:
    """grad () float32, lse (2, 2N) of the forward. Returns z0's gradient above z1's, (2N, D), in their dtype."""
    z = torch.cat([z0, z1])
    rows, d = z.shape
    grads = torch.empty_like(z)
    fixed = constants(z.dtype, d)
    _backward_kernel[(triton.cdiv(rows, fixed["ROWS"]),)](
        z, lse.contiguous(), grad, grads, rows, d, 1.0 / temperature, **fixed
    )
    return grads
