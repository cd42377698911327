"""InfoNCE on a GPU, forward and backward, in Triton (CPC, arXiv:1807.03748, eq. 4).

    s_ij = <q_i, k_j> / t, the excluded column left out, then <q_i, negative_j> / t; P the softmax of each row
    loss_i = lse_i - s_{i, target_i}, G_ij = (P_ij - [j = target_i]) dL/dloss_i
    dL/dq_i = sum_j G_ij column_j / t        dL/dk_j = sum_i G_ij q_i / t

The pass over the columns that gives the log-sum-exps gives dq too, up to the factor of its row (_contrast.py):
4 N (M + K) D operations, 2 N (M + K) D without. The backward multiplies, and recomputes the similarities for dk alone.
Grid of that: blocks of keys, parts of the queries, blocks of features; 4 N M D operations, the parts summed in their
order. At its target P - 1 is what the forward kept, 1 - P without cancellation, before it is rounded to 16 bits.
Targets and excluded columns are not checked on a GPU, which would wait for it: a row whose target is no key, or is
excluded, has a loss of NaN.
Triton and not CUDA: matrix products with a softmax's weights between them.
Reference and tests: fastssl/ops/info_nce.py, tests/ops/test_info_nce.py.
"""

from __future__ import annotations

import torch
import triton.language as tl
from torch import Tensor

from fastssl.ops.triton import _blocks, _launch
from fastssl.ops.triton._blocks import (
    add_weighted,
    excluded_of,
    part_of_columns,
    similarities,
    store_sums,
    target_of,
    touches,
    two_of,
)
from fastssl.ops.triton._combine import combine
from fastssl.ops.triton._contrast import contrast


@_blocks.kernel
def _keys_kernel(
    keys, queries, targets, exclude, softmax, shares, sums, m, n, per, scale,
    D: tl.constexpr, CHUNK: tl.constexpr, OUT: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    OPERAND: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    first = tl.program_id(0) * ROWS
    j = first + tl.arange(0, ROWS)
    weighted = tl.zeros((ROWS, OUT), tl.float32)
    start, end = part_of_columns(n, per, COLUMNS)
    for block in range(start, end):
        second = block * COLUMNS
        i = second + tl.arange(0, COLUMNS)
        maximum, weight = two_of(softmax, i, n, 0.0)
        s = similarities(keys, queries, first, second, m, n, scale, D, CHUNK, ROWS, COLUMNS, OPERAND, PRECISION)
        g = tl.exp(s - maximum[None, :]) * weight[None, :]  # past the end 1 times 0
        if (targets is not None) | touches(second, COLUMNS, first, first + ROWS):
            at_target = tl.load(shares + i, mask=i < n, other=0.0)
            g = tl.where(j[:, None] == target_of(i, targets, n, False)[None, :], at_target[None, :], g)
        if exclude is not None:
            g = tl.where(j[:, None] == excluded_of(i, exclude, n, False)[None, :], 0.0, g)
        weighted = add_weighted(weighted, g, queries, second, n, D, OUT, COLUMNS, OPERAND, PRECISION)
    store_sums(weighted, sums, m, D, ROWS, OUT)


def _contiguous(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.contiguous()


def forward(
    queries: Tensor,
    keys: Tensor,
    targets: Tensor | None,
    exclude: Tensor | None,
    negatives: Tensor | None,
    temperature: float,
    reduction: str,
    for_queries: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """queries (N, D), keys (M, D), targets and exclude (N) int64, negatives (K, D).

    Returns the loss, () or (N); the log-sum-exps in two parts and 1 - P(target), (3, N); and the gradient of each row's
    own loss to its query, (N, D) or (0, D); float32.
    """
    n, d = queries.shape
    losses, statistics = _launch.floats(n, like=queries), _launch.floats(3, n, like=queries)
    direction = _launch.floats(n if for_queries else 0, d, like=queries)
    queries, keys, *others = _launch.aligned(queries, keys, *(() if negatives is None else (negatives,)))
    contrast(
        queries,
        keys,
        [(keys, True), *((columns, False) for columns in others)],
        losses,
        1.0 / temperature,
        targets=_contiguous(targets),
        exclude=_contiguous(exclude),
        lse=statistics,
        share=statistics[2],
        direction=direction if for_queries else None,
        factor=1.0 / temperature,
    )
    loss = {"mean": losses.mean, "sum": losses.sum}.get(reduction)
    return losses if loss is None else loss(), statistics, direction


def backward(
    grad: Tensor,
    queries: Tensor,
    keys: Tensor,
    targets: Tensor | None,
    exclude: Tensor | None,
    statistics: Tensor,
    direction: Tensor,
    temperature: float,
    for_queries: bool,
    for_keys: bool,
) -> tuple[Tensor, Tensor]:
    """grad (N) float32 of the rows' losses; the forward's statistics and direction. Returns dq and dk, or (0, D)."""
    grad = grad.contiguous()
    (n, d), m = queries.shape, len(keys)
    grad_queries, grad_keys = queries.new_empty((n if for_queries else 0, d)), keys.new_empty((m if for_keys else 0, d))
    if for_queries:
        combine(direction.contiguous()[None], grad_queries, 1.0, weights=grad)
    if for_keys:
        queries, keys = _launch.aligned(queries, keys)
        fixed = _launch.constants(keys, queries, sums=True, crowded=True)
        parts, per = _launch.split(keys, queries, fixed)
        sums = _launch.floats(parts, *keys.shape, like=keys)
        # a mean's 1 / N would vanish in float16: rows weigh at most 1 here, and the largest is multiplied in later
        largest = grad.abs().amax().clamp_min(torch.finfo(torch.float32).tiny)
        weight = grad / largest
        softmax = torch.stack([statistics[0], weight * (-statistics[1]).exp()])
        _keys_kernel[_launch.grid(keys, parts, fixed)](
            keys, queries, _contiguous(targets), _contiguous(exclude), softmax, -weight * statistics[2], sums,
            m, n, per, 1.0 / temperature, **fixed,
        )  # fmt: skip
        combine(sums, grad_keys, 1.0 / temperature, scalar=largest)
    return grad_queries, grad_keys
