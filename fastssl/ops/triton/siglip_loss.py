"""SigLIP's sigmoid loss on a GPU, forward and backward, in Triton (arXiv:2303.15343, eq. 1).

    l_ij = scale <a_i, b_j> + bias, z_ij = 1 for i = j and -1 otherwise      loss = sum_ij log(1 + exp(-z_ij l_ij)) / N
    G_ij = -z_ij sigmoid(-z_ij l_ij) / N      dloss/da_i = scale sum_j G_ij b_j, dloss/db_j = scale sum_i G_ij a_i,
    dloss/dbias = sum_ij G_ij

No pair needs another's sum, so the forward finds the gradients too, up to a factor. Of each side that asks, blocks of
its rows walk the other's: 4 N^2 D operations a side, 2 N^2 D where none asks; the first side finds the loss and the
bias's gradient as well. Sums are kept for parts of the columns and added in their order: deterministic, no atomics.
Grid: blocks of rows, parts of the columns, blocks of features. The backward multiplies.
Bytes: the columns once a block of rows, from the L2 cache; nothing grows with N^2.
Triton and not CUDA: two matrix products with an elementwise function between them.
Reference and tests: fastssl/ops/siglip_loss.py, tests/ops/test_siglip_loss.py.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from fastssl.ops.triton import _blocks, _launch
from fastssl.ops.triton._blocks import add_weighted, log1p, part_of_columns, similarities, store_sums, touches
from fastssl.ops.triton._combine import combine


@triton.jit
def _softplus(x):
    """log(1 + exp(x)) and its derivative, without overflow, and exact where they are small."""
    e = tl.exp(-tl.abs(x))
    inverse = 1.0 / (1.0 + e)
    return tl.maximum(x, 0.0) + log1p(e), tl.where(x < 0, e * inverse, inverse)


@_blocks.kernel
def _side_kernel(
    rows, columns, bias, losses, slopes, sums, n, per, scale,
    D: tl.constexpr, CHUNK: tl.constexpr, OUT: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    OPERAND: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    first = tl.program_id(0) * ROWS
    i = first + tl.arange(0, ROWS)
    shift = tl.load(bias)
    loss = tl.zeros((ROWS,), tl.float32)
    slope = tl.zeros((ROWS,), tl.float32)
    if OUT > 0:
        weighted = tl.zeros((ROWS, OUT), tl.float32)
    start, end = part_of_columns(n, per, COLUMNS)
    for block in range(start, end):
        second = block * COLUMNS
        j = second + tl.arange(0, COLUMNS)
        s = similarities(rows, columns, first, second, n, n, scale, D, CHUNK, ROWS, COLUMNS, OPERAND, PRECISION)
        logits = s + shift
        special = (second + COLUMNS > n) | touches(second, COLUMNS, first, first + ROWS)
        if special:
            logits = tl.where(j[None, :] == i[:, None], -logits, logits)
        value, derivative = _softplus(logits)
        if special:
            derivative = tl.where(j[None, :] == i[:, None], -derivative, derivative)
            derivative, value = tl.where((j < n)[None, :], derivative, 0.0), tl.where((j < n)[None, :], value, 0.0)
        if losses is not None:
            loss += tl.sum(value, 1)
            slope += tl.sum(derivative, 1)
        if OUT > 0:
            weighted = add_weighted(weighted, derivative, columns, second, n, D, OUT, COLUMNS, OPERAND, PRECISION)
    if (losses is not None) and (tl.program_id(2) == 0):
        at = tl.program_id(1).to(tl.int64) * n + i
        tl.store(losses + at, loss, mask=i < n)
        tl.store(slopes + at, slope, mask=i < n)
    if OUT > 0:
        store_sums(weighted, sums, n, D, ROWS, OUT)


def _side(
    rows: Tensor, columns: Tensor, bias: Tensor, scale: float, direction: Tensor, with_loss: bool
) -> tuple[Tensor, Tensor] | None:
    """Writes a side's direction, unless it is empty; the loss and its slope by the bias, () each, where asked for."""
    n, d = rows.shape
    fixed = _launch.constants(rows, columns, sums=len(direction) > 0, crowded=True)
    parts, per = _launch.split(rows, columns, fixed)
    sums = _launch.floats(parts, n, d, like=rows) if len(direction) else None
    losses, slopes = _launch.floats(2, parts, n, like=rows) if with_loss else (None, None)
    _side_kernel[_launch.grid(rows, parts, fixed)](rows, columns, bias, losses, slopes, sums, n, per, scale, **fixed)
    if sums is not None:
        combine(sums, direction, scale / n)
    return None if losses is None or slopes is None else (losses.sum() / n, slopes.sum() / n)


def forward(
    a: Tensor, b: Tensor, bias: Tensor, scale: float, for_a: bool, for_b: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """a, b (N, D), bias (). Returns loss and dloss/dbias (), dloss/da and dloss/db (N, D), or (0, D); float32."""
    n, d = a.shape
    direction_a, direction_b = (_launch.floats(n if wanted else 0, d, like=a) for wanted in (for_a, for_b))
    a, b = _launch.aligned(a, b)
    # the loss is found with whichever side asks, so that no pass is made for it alone
    sides = [(a, b, direction_a), (b, a, direction_b)]
    first, *others = sorted(sides, key=lambda side: len(side[2]), reverse=True)
    found = _side(first[0], first[1], bias, scale, first[2], True)
    assert found is not None
    for rows, columns, direction in others:
        if len(direction):
            _side(rows, columns, bias, scale, direction, False)
    return *found, direction_a, direction_b


def backward(grad: Tensor, direction_a: Tensor, direction_b: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """grad () float32. Returns the directions times it, in the dtypes of a and b."""
    grads = a.new_empty(direction_a.shape), b.new_empty(direction_b.shape)
    for direction, out in zip((direction_a, direction_b), grads, strict=True):
        if len(direction):
            combine(direction.contiguous()[None], out, 1.0, scalar=grad)
    return grads
