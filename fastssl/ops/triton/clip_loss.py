"""CLIP's symmetric cross-entropy on a GPU, forward and backward, in Triton (arXiv:2103.00020, figure 3).

    s_ij = scale <a_i, b_j>, P the softmax of its rows, Q that of its columns
    loss = sum_i (-log P_ii - log Q_ii) / 2N        G = (P + Q - 2 I) / 2N
    dloss/da_i = scale sum_j G_ij b_j               dloss/db_j = scale sum_i G_ij a_i

Forward: two passes of _contrast.py without sums, of a over b and of b over a: 4 N^2 D operations. One pass could do
both in 2 N^2 D, but would keep a row block's part of each column's softmax, which grows with N^2.
Backward, of each side that asks: blocks of its rows walk the other's, recompute s and sum G times the other's rows:
4 N^2 D operations a side, parts summed in their order, no atomics. Both directions' weights, and on the diagonal what
the forward kept of them without cancellation, are added before they are rounded to 16 bits.
Triton and not CUDA: matrix products with two softmaxes' weights between them.
Reference and tests: fastssl/ops/clip_loss.py, tests/ops/test_clip_loss.py.
"""

from __future__ import annotations

import triton.language as tl
from torch import Tensor

from fastssl.ops.triton import _blocks, _launch
from fastssl.ops.triton._blocks import add_weighted, part_of_columns, similarities, store_sums, touches, two_of
from fastssl.ops.triton._combine import combine
from fastssl.ops.triton._contrast import contrast


@_blocks.kernel
def _side_kernel(
    rows, columns, of_rows, of_columns, sums, n, per, scale,
    D: tl.constexpr, CHUNK: tl.constexpr, OUT: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    OPERAND: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """of_rows, of_columns (3, n): the maximum, the log of what is left, and the share of the others."""
    first = tl.program_id(0) * ROWS
    i = first + tl.arange(0, ROWS)
    row_maximum = tl.load(of_rows + i, mask=i < n, other=float("inf"))
    row_log = tl.load(of_rows + n + i, mask=i < n, other=0.0)
    row_share = tl.load(of_rows + 2 * n + i, mask=i < n, other=0.0)
    weighted = tl.zeros((ROWS, OUT), tl.float32)
    start, end = part_of_columns(n, per, COLUMNS)
    for block in range(start, end):
        second = block * COLUMNS
        j = second + tl.arange(0, COLUMNS)
        column_maximum, column_log = two_of(of_columns, j, n, float("inf"))
        s = similarities(rows, columns, first, second, n, n, scale, D, CHUNK, ROWS, COLUMNS, OPERAND, PRECISION)
        g = tl.exp(s - row_maximum[:, None] - row_log[:, None])
        g += tl.exp(s - column_maximum[None, :] - column_log[None, :])
        if (second + COLUMNS > n) | touches(second, COLUMNS, first, first + ROWS):
            column_share = tl.load(of_columns + 2 * n + j, mask=j < n, other=0.0)
            g = tl.where(j[None, :] == i[:, None], -(row_share[:, None] + column_share[None, :]), g)
            # columns past the end are zeros, and what multiplies them must be finite
            g = tl.where((j < n)[None, :], g, 0.0)
        weighted = add_weighted(weighted, g, columns, second, n, D, OUT, COLUMNS, OPERAND, PRECISION)
    store_sums(weighted, sums, n, D, ROWS, OUT)


def forward(a: Tensor, b: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """a, b (N, D). Returns the loss () and, of a above b, log-sum-exps in two parts and shares (6, N); float32."""
    a, b = _launch.aligned(a, b)
    n = len(a)
    losses, statistics = _launch.floats(2, n, like=a), _launch.floats(6, n, like=a)
    for rows, columns, of_rows, out in ((a, b, statistics[:3], losses[0]), (b, a, statistics[3:], losses[1])):
        contrast(rows, columns, [(columns, True)], out, scale, lse=of_rows, share=of_rows[2])
    return losses.mean(), statistics


def backward(
    grad: Tensor, a: Tensor, b: Tensor, statistics: Tensor, scale: float, for_a: bool, for_b: bool
) -> tuple[Tensor, Tensor]:
    """grad () float32, statistics of the forward. Returns the gradients of a and b, or (0, D)."""
    n, d = a.shape
    of_a, of_b = statistics.contiguous().chunk(2)
    grads = a.new_empty((n if for_a else 0, d)), b.new_empty((n if for_b else 0, d))
    a, b = _launch.aligned(a, b)
    for out, rows, columns, of_rows, of_columns in ((grads[0], a, b, of_a, of_b), (grads[1], b, a, of_b, of_a)):
        if len(out) == 0:
            continue
        fixed = _launch.constants(rows, columns, sums=True)
        parts, per = _launch.split(rows, columns, fixed)
        sums = _launch.floats(parts, *a.shape, like=a)
        _side_kernel[_launch.grid(rows, parts, fixed)](rows, columns, of_rows, of_columns, sums, n, per, scale, **fixed)
        combine(sums, out, scale / (2 * n), scalar=grad)
    return grads
