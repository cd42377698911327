"""NT-Xent on a GPU, forward and backward, in Triton (arXiv:2002.05709, eq. 1).

    rows z = [z0; z1] (R = 2N, D), s_ij = <z_i, z_j> / t, own column left out
    lse_i = log sum_{j != i} exp(s_ij)        row loss_i = lse_i - s_{i, i +- N}
    P_ij = exp(s_ij - lse_i), G = P + P^T - 2 [j is i's other view]        dz = G z / (t R)

Forward: the pass of _contrast.py without sums, 2 R^2 D operations. Backward: s is symmetric, so the program that holds
rows i reads P_ji from its own product and the saved lse_j: one recomputed product and one product with z, 4 R^2 D
operations. Grid of that: blocks of rows, parts of the columns, blocks of features; parts are summed in their order:
deterministic, no atomics. The positive is subtracted from P, which it nearly cancels, before G is rounded to 16 bits.
Bytes: R D read per block of rows, from the L2 cache; nothing grows with R^2.
Triton and not CUDA: two matrix products with an elementwise function between them.
Reference and tests: fastssl/ops/nt_xent.py, tests/ops/test_nt_xent.py.
"""

from __future__ import annotations

import torch
import triton.language as tl
from torch import Tensor

from fastssl.ops.triton import _blocks, _launch
from fastssl.ops.triton._blocks import (
    add_weighted,
    part_of_columns,
    similarities,
    span,
    store_sums,
    target_of,
    touches,
    two_of,
)
from fastssl.ops.triton._combine import combine
from fastssl.ops.triton._contrast import contrast


@_blocks.kernel
def _backward_kernel(
    z, lse, sums, n, per, scale,
    D: tl.constexpr, CHUNK: tl.constexpr, OUT: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    OPERAND: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    first = tl.program_id(0) * ROWS
    i = first + tl.arange(0, ROWS)
    # the log-sum-exp in its two parts: rounding their sum would lose what tells rows apart
    row_maximum = tl.load(lse + i, mask=i < n, other=float("inf"))
    row_log = tl.load(lse + n + i, mask=i < n, other=0.0)
    other_view = target_of(i, None, n, True)
    least, most = span(other_view, i < n)
    weighted = tl.zeros((ROWS, OUT), tl.float32)
    start, end = part_of_columns(n, per, COLUMNS)
    for block in range(start, end):
        second = block * COLUMNS
        j = second + tl.arange(0, COLUMNS)
        column_maximum, column_log = two_of(lse, j, n, float("inf"))
        s = similarities(z, z, first, second, n, n, scale, D, CHUNK, ROWS, COLUMNS, OPERAND, PRECISION)
        g = tl.exp(s - row_maximum[:, None] - row_log[:, None])
        g += tl.exp(s - column_maximum[None, :] - column_log[None, :])
        positives = touches(second, COLUMNS, least, most)
        if positives | touches(second, COLUMNS, first, first + ROWS) | (second + COLUMNS > n):
            g = tl.where(j[None, :] == other_view[:, None], g - 2.0, g)
            # rows past the end weigh nothing by their infinite maximum; their columns are zeros: 0 * exp(s) must be 0
            g = tl.where((j[None, :] == i[:, None]) | (j >= n)[None, :], 0.0, g)
        weighted = add_weighted(weighted, g, z, second, n, D, OUT, COLUMNS, OPERAND, PRECISION)
    store_sums(weighted, sums, n, D, ROWS, OUT)


def forward(z0: Tensor, z1: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """z0, z1 (N, D). Returns the loss () and the rows' log-sum-exp in two parts (2, 2N), float32."""
    (z,) = _launch.aligned(torch.cat([z0, z1]))
    losses, lse = _launch.floats(len(z), like=z), _launch.floats(2, len(z), like=z)
    contrast(z, z, [(z, True)], losses, 1.0 / temperature, views=True, lse=lse)
    return losses.mean(), lse


def backward(grad: Tensor, z0: Tensor, z1: Tensor, lse: Tensor, temperature: float) -> Tensor:
    """grad () float32, lse (2, 2N) of the forward. Returns z0's gradient above z1's, (2N, D), in their dtype."""
    grads = torch.cat([z0, z1])
    (z,) = _launch.aligned(grads)
    n, d = z.shape
    grads = torch.empty_like(grads)
    fixed = _launch.constants(z, z, sums=True)
    parts, per = _launch.split(z, z, fixed)
    sums = _launch.floats(parts, n, d, like=z)
    _backward_kernel[_launch.grid(z, parts, fixed)](z, lse.contiguous(), sums, n, per, 1.0 / temperature, **fixed)
    combine(sums, grads, 1.0 / (temperature * n), scalar=grad)
    return grads
