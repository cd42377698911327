"""Each row's softmax over columns that stream by, and the columns' sum weighted by it: what every InfoNCE is made of.

    s_ij = scale <q_i, c_j>, without the row's target (its positive, s_i) and without the column it leaves out
    lse_i = log(exp(s_i) + sum_j exp(s_ij))       loss_i = lse_i - s_i       share_i = 1 - exp(s_i - lse_i)
    direction_i = factor * (sum_j exp(s_ij - lse_i) c_j - share_i key_i)

Grid of the pass: blocks of rows, parts of the columns, blocks of features of the sums (which recompute similarities
where there is more than one): an online maximum and sum, 2 n m D operations, and 2 n m D for the sums. The second
kernel combines the parts in their order, one program a few rows: deterministic, no atomics.
The positive is no term of the sums that are rounded to 16 bits and takes part in float32 only, so nothing cancels: a
loss or a gradient that is nearly 0 keeps its digits. The log-sum-exp is kept in two parts, its maximum and the log of
what is left, for their sum would be rounded.
Bytes: the columns once a block of rows, from the L2 cache; n D floats a part, of which there are fewer the more rows.
Triton and not CUDA: two matrix products with an online softmax between them.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from fastssl.ops.triton import _blocks, _launch
from fastssl.ops.triton._blocks import (
    absorb,
    add_weighted,
    excluded_of,
    log1p,
    part_of_columns,
    similarities,
    span,
    store_sums,
    target_of,
    touches,
)


@_blocks.kernel
def _stream_kernel(
    queries, columns, targets, exclude, positives, maxima, totals, sums, n, m, per, scale,
    KEYS: tl.constexpr, VIEWS: tl.constexpr,
    D: tl.constexpr, CHUNK: tl.constexpr, OUT: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    OPERAND: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """KEYS: the columns are those that targets and excluded numbers count; else all of them count.

    ``positives`` (n) receive the targets' similarities, where a backward needs them as these products round them.
    """
    first = tl.program_id(0) * ROWS
    i = first + tl.arange(0, ROWS)
    maximum = tl.full((ROWS,), -3.0e38, tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    positive = tl.zeros((ROWS,), tl.float32)
    if OUT > 0:
        weighted = tl.zeros((ROWS, OUT), tl.float32)
    if KEYS:
        target = target_of(i, targets, n, VIEWS)
        excluded = excluded_of(i, exclude, n, VIEWS)
        least_target, most_target = span(target, i < n)
        least_excluded, most_excluded = span(excluded, i < n)
    start, end = part_of_columns(m, per, COLUMNS)
    for block in range(start, end):
        second = block * COLUMNS
        j = second + tl.arange(0, COLUMNS)
        s = similarities(queries, columns, first, second, n, m, scale, D, CHUNK, ROWS, COLUMNS, OPERAND, PRECISION)
        special = second + COLUMNS > m  # most blocks have no column that is left out
        if KEYS:
            special |= touches(second, COLUMNS, least_target, most_target)
            special |= touches(second, COLUMNS, least_excluded, most_excluded)
        if special:
            left_out = (j >= m)[None, :]
            if KEYS:
                own = j[None, :] == target[:, None]
                if positives is not None:
                    positive += tl.sum(tl.where(own, s, 0.0), 1)
                left_out = left_out | own | (j[None, :] == excluded[:, None])
            s = tl.where(left_out, float("-inf"), s)
        maximum, total, weights, kept = absorb(s, maximum, total)
        if OUT > 0:
            weighted = add_weighted(
                weighted * kept[:, None], weights, columns, second, m, D, OUT, COLUMNS, OPERAND, PRECISION
            )
    if tl.program_id(2) == 0:
        at = tl.program_id(1).to(tl.int64) * n + i
        tl.store(maxima + at, maximum, mask=i < n)
        tl.store(totals + at, total, mask=i < n)
        if positives is not None:
            mine = (target >= start * COLUMNS) & (target < end * COLUMNS)
            tl.store(positives + i, positive, mask=(i < n) & mine)
    if OUT > 0:
        store_sums(weighted, sums, n, D, ROWS, OUT)


@triton.jit
def _positives(
    queries, keys, i, targets, exclude, n, m, scale,
    D: tl.constexpr, ROWS: tl.constexpr, FEATURES: tl.constexpr,
):  # fmt: skip
    """Each row's target and its similarity; NaN for a target that is none of the m keys, or is left out."""
    target = target_of(i, targets, n, False).to(tl.int64)
    good = (i < n) & (target >= 0) & (target < m) & (target != excluded_of(i, exclude, n, False))
    positive = tl.zeros((ROWS,), tl.float32)
    for feature in range(0, D, FEATURES):
        k = feature + tl.arange(0, FEATURES)
        inside = good[:, None] & (k < D)[None, :]
        query = tl.load(queries + i.to(tl.int64)[:, None] * D + k[None, :], mask=inside, other=0.0)
        key = tl.load(keys + target[:, None] * D + k[None, :], mask=inside, other=0.0)
        positive += tl.sum(query.to(tl.float32) * key.to(tl.float32), 1)
    return target, good, tl.where(good, positive * scale, float("nan"))


@_blocks.kernel
def _finish_kernel(
    queries, keys, targets, exclude, positives, maxima, totals, sums, losses, lse, share, direction,
    n, m, parts, scale, factor,
    D: tl.constexpr, OUT: tl.constexpr, ROWS: tl.constexpr, PARTS: tl.constexpr, FEATURES: tl.constexpr,
):  # fmt: skip
    i = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    maximum = tl.full((ROWS,), -3.0e38, tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    for first in range(0, parts, PARTS):
        part = first + tl.arange(0, PARTS)
        at, there = part.to(tl.int64)[None, :] * n + i[:, None], (i < n)[:, None] & (part < parts)[None, :]
        some = tl.load(maxima + at, mask=there, other=-3.0e38)
        new_maximum = tl.maximum(maximum, tl.max(some, 1))
        terms = tl.load(totals + at, mask=there, other=0.0) * tl.exp(some - new_maximum[:, None])
        total = total * tl.exp(maximum - new_maximum) + tl.sum(terms, 1)
        maximum = new_maximum

    if positives is not None:
        positive = tl.load(positives + i, mask=i < n, other=0.0)
    else:
        target, good, positive = _positives(queries, keys, i, targets, exclude, n, m, scale, D, ROWS, FEATURES)
    shift = tl.maximum(maximum, positive)
    others = total * tl.exp(maximum - shift)
    everything = others + tl.exp(positive - shift)
    others_share = others / everything
    if tl.program_id(1) == 0:
        log_total = tl.where(maximum > positive, tl.log(everything), log1p(others))
        # an infinite positive has no loss: its difference with itself is NaN
        tl.store(losses + i, (shift - positive) + log_total + (positive - positive), mask=i < n)
        if lse is not None:
            tl.store(lse + i, shift, mask=i < n)
            tl.store(lse + n + i, log_total, mask=i < n)
        if share is not None:
            tl.store(share + i, others_share, mask=i < n)
    if direction is not None:
        k = tl.program_id(1) * FEATURES + tl.arange(0, FEATURES)
        weighted = tl.zeros((ROWS, FEATURES), tl.float32)
        for first in range(0, parts, PARTS):
            part = first + tl.arange(0, PARTS)
            at, there = part.to(tl.int64)[None, :] * n + i[:, None], (i < n)[:, None] & (part < parts)[None, :]
            weights = tl.exp(tl.load(maxima + at, mask=there, other=-3.0e38) - shift[:, None]) / everything[:, None]
            inside = there[:, :, None] & (k < D)[None, None, :]
            values = tl.load(sums + at[:, :, None] * D + k[None, None, :], mask=inside, other=0.0)
            weighted += tl.sum(values * weights[:, :, None], 1)
        inside = (i < n)[:, None] & (k < D)[None, :]
        key = tl.load(keys + target[:, None] * D + k[None, :], mask=inside & good[:, None], other=0.0)
        result = factor * (weighted - others_share[:, None] * key.to(tl.float32))
        tl.store(direction + i.to(tl.int64)[:, None] * OUT + k[None, :], result, mask=inside & (k < OUT)[None, :])


def contrast(
    queries: Tensor,
    keys: Tensor,
    streams: list[tuple[Tensor, bool]],
    losses: Tensor,
    scale: float,
    *,
    targets: Tensor | None = None,
    exclude: Tensor | None = None,
    views: bool = False,
    lse: Tensor | None = None,
    share: Tensor | None = None,
    direction: Tensor | None = None,
    factor: float = 1.0,
) -> None:
    """Writes what is given of each row's loss (n), log-sum-exp in two parts (2, n), share (n), direction (n, most d).

    Args:
        queries: (n, d); like all tensors here contiguous, and like all rows aligned.
        keys: (m, d), those that targets count.
        streams: the columns that pass by, and whether they are the keys, whose targets and excluded are left out.
        targets, exclude: (n) int64, by default each row's own number, and none.
        views: the queries are the keys, both views of n / 2 samples: targets are the others, and the own left out.
    """
    n, d = queries.shape
    launches = []
    for columns, are_keys in streams:
        fixed = _launch.constants(queries, columns, sums=direction is not None)
        launches.append((columns, are_keys, fixed, *_launch.split(queries, columns, fixed)))
    parts = sum(launch[3] for launch in launches)
    maxima, totals = _launch.floats(2, parts, n, like=queries)
    positives = _launch.floats(n, like=queries) if views else None
    sums = None if direction is None else _launch.floats(parts, n, d, like=queries)
    done = 0
    for columns, are_keys, fixed, some, per in launches:
        _stream_kernel[_launch.grid(queries, some, fixed)](
            queries, columns, targets, exclude, positives, maxima[done:], totals[done:],
            None if sums is None else sums[done:], n, len(columns), per, scale, KEYS=are_keys, VIEWS=views, **fixed,
        )  # fmt: skip
        done += some
    at_once = _launch.parts_at_once(parts)
    features = min(128, max(16, triton.next_power_of_2(d)))
    rows = max(1, _launch.ELEMENTS // (at_once * features))
    _finish_kernel[(triton.cdiv(n, rows), 1 if direction is None else triton.cdiv(d, features))](
        queries, keys, targets, exclude, positives, maxima, totals, sums, losses, lse, share, direction,
        n, len(keys), parts, scale, factor,
        D=d, OUT=d if direction is None else direction.shape[1], ROWS=rows, PARTS=at_once, FEATURES=features,
    )  # fmt: skip
