"""The nearest rows of a bank on a GPU, in Triton: what ``knn_classify`` and ``propagate_labels`` share.

    s_ij = <x_i, b_j> / (|x_i| |b_j|)        N_i = the k largest s_ij, of equal ones the lowest j
    out_ic = sum_{j in N_i} w_ij value_jc / sum_{j in N_i} w_ij        w_ij = exp((s_ij - max_j s_ij) / t)

Four kernels. ``_scales_kernel``: the rows' inverse lengths, so that products are of the rows as they are given.
``_nearest_kernel``: one program a block of queries and a part of the bank. It multiplies the queries with block after
block of the bank on the tensor cores (float32 accumulation) and appends what lies above each query's threshold to that
query's candidates, in global memory that stays in the L2 cache; where their room is nearly full, the k largest remain
and the least of them is the threshold. A program's buffers are its own: no atomics. ``_merge_kernel``: the k largest of
all parts. ``_average_kernel``: weights and weighted values, one program a query and a block of classes.
Candidates stay in the order of the bank, so ties are decided as in the reference, and the k that remain are the same in
the same order however the work is divided: so are the bits of the result.
A similarity that is NaN counts as infinite: its row is chosen, and what it has a part in becomes NaN. A row so long
that its length overflows has similarity 0 to all, as in the reference.
Operations: 2 Q M D on the tensor cores, about 5 for each similarity, and few for what lies above a threshold. Memory:
8 bytes for each of splits Q k candidates, and at most _WORKSPACE for the buffers; similarities are never stored.
Triton and not CUDA: matrix products, with comparisons and prefix sums that Triton has; a sort is reckoned to cost more
than the product.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastssl.ops.triton import _launch
from fastssl.ops.triton._launch import float32_precision

_PROGRAMS = 264  # two for each processor of an H100: with fewer blocks of queries, the bank is divided
_LEAST_BLOCKS = 8  # of the bank a program, which the start of its threshold must pay for
_WORKSPACE = 128 << 20  # bytes of candidates' buffers, or those of one block of queries
PIECE = 16  # candidates of a query that are looked at together


# What a last batch may have fewer of compiles nothing anew. Multiples of 16 do among what rows are apart, for the sake
# of wide loads: ``d``, ``classes``, ``stride`` and the strides of ``out``.
_kernel = triton.jit(do_not_specialize=["rows", "columns", "k", "capacity", "first_tile", "height", "width", "radius"])


class Window(NamedTuple):
    """Queries are the pixels of a frame and rows of the bank those of frames, which must be within ``radius``."""

    height: int
    width: int
    radius: int


@_kernel
def _scales_kernel(x, scales, rows, d, ROWS: tl.constexpr, CHUNK: tl.constexpr):
    """1 / length of each row as torch.nn.functional.normalize has it; NaN where a row has NaN or infinity."""
    i = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    squares = tl.zeros((ROWS,), tl.float32)
    lost = tl.zeros((ROWS,), tl.float32)
    for feature in range(0, d, CHUNK):
        k = feature + tl.arange(0, CHUNK)
        inside = (i < rows)[:, None] & (k < d)[None, :]
        values = tl.load(x + i.to(tl.int64)[:, None] * d + k[None, :], mask=inside, other=0.0).to(tl.float32)
        squares += tl.sum(values * values, 1)
        lost += tl.sum(values * 0.0, 1)
    length = tl.maximum(tl.sqrt_rn(squares), 1e-12)
    tl.store(scales + i, tl.div_rn(tl.full((ROWS,), 1.0, tl.float32), length) + lost, mask=i < rows)


@triton.jit
def _load(x, row, real, feature, d, FEATURES: tl.constexpr, WHOLE: tl.constexpr):
    """Features feature .. feature + FEATURES of the given rows, zeros for rows that are not real and past the last."""
    k = feature + tl.arange(0, FEATURES)
    inside = real[:, None]
    if not WHOLE:
        inside = inside & (k < d)[None, :]
    return tl.load(x + row.to(tl.int64)[:, None] * d + k[None, :], mask=inside, other=0.0)


@triton.jit
def _similarities(
    x, bank, x_scales, bank_scales, i, i_real, j, j_real, d,
    CHUNK: tl.constexpr, WHOLE: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    s = tl.zeros((ROWS, COLUMNS), tl.float32)
    for feature in range(0, d, CHUNK):
        a = _load(x, i, i_real, feature, d, CHUNK, WHOLE)
        b = _load(bank, j, j_real, feature, d, CHUNK, WHOLE)
        s = tl.dot(a, tl.trans(b), s, input_precision=PRECISION)
    scale_i = tl.load(x_scales + i, mask=i_real, other=0.0)
    scale_j = tl.load(bank_scales + j, mask=j_real, other=0.0)
    scale = scale_i[:, None] * scale_j[None, :]
    s = tl.where(scale == 0.0, 0.0, s * scale)  # one of the lengths is infinite, and so may the product be
    return tl.where(s == s, s, float("inf"))


@triton.jit
def _keys(values, start, first, count, PIECE: tl.constexpr):
    """Candidates first .. first + PIECE of each row, and integers in their order; the least past the last one."""
    place = first + tl.arange(0, PIECE)
    inside = place[None, :] < count[:, None]
    value = tl.load(values + start[:, None] + place[None, :], mask=inside, other=float("-inf"))
    bits = (value + 0.0).to(tl.int32, bitcast=True)  # -0 as 0
    key = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    return value, tl.where(inside, key, -0x80000000), inside


@triton.jit
def _at_least(key, inside, bound):
    """How many keys of each row are not below its bound, which is given as an unsigned integer."""
    return tl.sum((inside & (key >= (bound ^ -0x80000000)[:, None])).to(tl.int32), 1)


@triton.jit
def _keep_largest(values, ids, start, count, k, to_values, to_ids, to_start, ROWS: tl.constexpr, PIECE: tl.constexpr):
    """Moves the k largest of each row's candidates, or all of fewer, in their order to the front of another place.

    The place may be the same. Returns how many there are, and the least of k, or -inf. The k-th largest key is found
    two bits at a time: no order of the data is slow.
    """
    length = tl.max(count, 0)
    found = tl.zeros((ROWS,), tl.int32)
    for step in range(16):
        quarter = tl.full((ROWS,), 1, tl.int32) << (30 - 2 * step)
        one, two = found | quarter, found | (quarter << 1)
        three = two | quarter
        ones, twos, threes = (tl.zeros((ROWS,), tl.int32), tl.zeros((ROWS,), tl.int32), tl.zeros((ROWS,), tl.int32))
        for first in tl.range(0, length, PIECE, num_stages=1):
            _, key, inside = _keys(values, start, first, count, PIECE)
            ones += _at_least(key, inside, one)
            twos += _at_least(key, inside, two)
            threes += _at_least(key, inside, three)
        found = tl.where(threes >= k, three, tl.where(twos >= k, two, tl.where(ones >= k, one, found)))
    bound = found ^ -0x80000000
    equal_left = tl.full((ROWS,), k, tl.int32)
    for first in tl.range(0, length, PIECE, num_stages=1):
        _, key, _ = _keys(values, start, first, count, PIECE)
        equal_left -= tl.sum((key > bound[:, None]).to(tl.int32), 1)
    kept = tl.zeros((ROWS,), tl.int32)
    for first in tl.range(0, length, PIECE, num_stages=1):
        value, key, inside = _keys(values, start, first, count, PIECE)
        id = tl.load(ids + start[:, None] + (first + tl.arange(0, PIECE))[None, :], mask=inside, other=0)
        tl.debug_barrier()  # all of this piece is read before a part of it is written over
        equal = (inside & (key == bound[:, None])).to(tl.int32)
        keep = inside & ((key > bound[:, None]) | ((equal == 1) & (tl.cumsum(equal, 1) <= equal_left[:, None])))
        place = to_start[:, None] + kept[:, None] + tl.cumsum(keep.to(tl.int32), 1) - 1
        tl.store(to_values + place, value, mask=keep)
        tl.store(to_ids + place, id, mask=keep)
        equal_left -= tl.sum(equal, 1)
        kept += tl.sum(keep.to(tl.int32), 1)
    tl.debug_barrier()
    least = (bound ^ ((bound >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)
    return kept, tl.where(count < k, float("-inf"), least)


@_kernel
def _nearest_kernel(
    x, bank, x_scales, bank_scales, values, ids, kept_values, kept_ids,
    rows, columns, d, k, capacity, first_tile, height, width, radius,
    WINDOW: tl.constexpr, ACROSS: tl.constexpr, PIECE: tl.constexpr,
    CHUNK: tl.constexpr, WHOLE: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    tile, lane = first_tile + tl.program_id(0), tl.arange(0, ROWS)
    if WINDOW:  # the tile is ROWS / ACROSS rows and ACROSS columns of the frame, which share most of their windows
        tiles_across = tl.cdiv(width, ACROSS)
        top, left = tile // tiles_across * (ROWS // ACROSS), tile % tiles_across * ACROSS
        y, x_place = top + lane // ACROSS, left + lane % ACROSS
        i, real = y * width + x_place, (y < height) & (x_place < width)
        first_y, first_x = tl.maximum(top - radius, 0), tl.maximum(left - radius, 0)
        wide = tl.minimum(left + ACROSS + radius, width) - first_x
        area = (tl.minimum(top + ROWS // ACROSS + radius, height) - first_y) * wide
        length = columns // (height * width) * area
    else:
        i = tile * ROWS + lane
        real = i < rows
        length = columns
    part, parts = tl.program_id(1), tl.num_programs(1)
    # this program's candidates: 64 bits an element would not fit the registers
    buffer = (tl.program_id(0).to(tl.int64) * parts + part) * ROWS * capacity
    values, ids, start = values + buffer, ids + buffer, lane * capacity
    count = tl.zeros((ROWS,), tl.int32)
    threshold = tl.where(real, float("-inf"), float("inf"))
    blocks = tl.cdiv(length, COLUMNS)
    share = tl.cdiv(blocks, parts)
    for block in range(part * share, tl.minimum(blocks, (part + 1) * share)):
        j = block * COLUMNS + tl.arange(0, COLUMNS)
        j_real = j < length
        inside = real[:, None] & j_real[None, :]
        if WINDOW:
            row, column = first_y + j % area // wide, first_x + j % wide
            j = j // area * (height * width) + row * width + column
            inside &= (tl.abs(y[:, None] - row[None, :]) <= radius) & (
                tl.abs(x_place[:, None] - column[None, :]) <= radius
            )
        s = _similarities(x, bank, x_scales, bank_scales, i, real, j, j_real, d, CHUNK, WHOLE, ROWS, COLUMNS, PRECISION)
        above = (inside & (s > threshold[:, None])).to(tl.int32)
        more = tl.sum(above, 1)
        if tl.max(more, 0) > 0:
            place = start[:, None] + count[:, None] + tl.cumsum(above, 1) - 1
            tl.store(values + place, s, mask=above == 1)
            tl.store(ids + place, tl.broadcast_to(j[None, :], (ROWS, COLUMNS)), mask=above == 1)
            count += more
            if tl.max(count, 0) > capacity - COLUMNS:  # the next block may not fit
                tl.debug_barrier()
                count, least = _keep_largest(values, ids, start, count, k, values, ids, start, ROWS, PIECE)
                threshold = tl.where(real, least, float("inf"))
    tl.debug_barrier()
    to_start = (i.to(tl.int64) * parts + part) * k
    kept, _ = _keep_largest(values, ids, start, count, k, kept_values, kept_ids, to_start, ROWS, PIECE)
    for first in tl.range(0, k, PIECE, num_stages=1):  # fewer than k
        place = first + tl.arange(0, PIECE)
        free = real[:, None] & (place[None, :] >= kept[:, None]) & (place < k)[None, :]
        tl.store(kept_values + to_start[:, None] + place[None, :], float("-inf"), mask=free)


@_kernel
def _merge_kernel(values, ids, rows, k, stride, ROWS: tl.constexpr, PIECE: tl.constexpr):
    """The k largest of each row of (rows, stride) to its front."""
    i = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    start = i.to(tl.int64) * stride
    count = tl.where(i < rows, stride, 0)
    _keep_largest(values, ids, start, count, k, values, ids, start, ROWS, PIECE)


@_kernel
def _average_kernel(
    values, ids, of_rows, out, k, stride, classes, class_blocks, temperature, row_stride, class_stride,
    VOTES: tl.constexpr, NEIGHBOURS: tl.constexpr, CLASSES: tl.constexpr,
):  # fmt: skip
    """of_rows: the class (M,) of each row of the bank, its 1 among zeros (VOTES), or its values (M, classes)."""
    query = (tl.program_id(0) // class_blocks).to(tl.int64)
    c = tl.program_id(0) % class_blocks * CLASSES + tl.arange(0, CLASSES)
    place = tl.arange(0, NEIGHBOURS)
    values, ids = values + query * stride, ids + query * stride
    maximum = float("-inf")
    for first in range(0, k, NEIGHBOURS):
        maximum = tl.maximum(
            maximum, tl.max(tl.load(values + first + place, mask=first + place < k, other=float("-inf")), 0)
        )
    total = 0.0
    sums = tl.zeros((CLASSES,), tl.float32)
    for first in range(0, k, NEIGHBOURS):
        value = tl.load(values + first + place, mask=first + place < k, other=float("-inf"))
        there = value > float("-inf")
        weight = tl.exp((value - maximum) / temperature)
        row = tl.load(ids + first + place, mask=there, other=0).to(tl.int64)
        total += tl.sum(weight, 0)
        if VOTES:
            label = tl.load(of_rows + row, mask=there, other=-1)
            sums += tl.sum(tl.where(label[:, None] == c[None, :], weight[:, None], 0.0), 0)
        else:
            inside = there[:, None] & (c < classes)[None, :]
            averaged = tl.load(of_rows + row[:, None] * classes + c[None, :], mask=inside, other=0.0)
            sums += tl.sum(weight[:, None] * averaged, 0)
    tl.store(out + query * row_stride + c.to(tl.int64) * class_stride, sums / total, mask=c < classes)


def constants(dtype: torch.dtype, d: int, window: bool, generation: int) -> dict[str, Any]:
    """Compile-time constants and launch options of ``_nearest_kernel`` on a GPU generation.

    The largest tile whose appending, 32 similarities a thread with place and number, stays in registers on all
    generations; float32's products take more of them, and so do windows, of which 8 x 8 pixels waste least, and rows
    that begin anywhere (Triton counts on multiples of 16), which no copy brings to shared memory ahead of time. On an
    H100 float32 is 2.5 times as fast by 4 warps, as many as its products of 64 rows take.
    """
    fixed = {"WINDOW": window, "ACROSS": 8, "ROWS": 64, "PIECE": PIECE, "num_warps": 8}
    if dtype != torch.float32:
        chunk, columns, stages = (64, 64 if window else 128, 3) if d % 16 == 0 else (32, 64, 1)
        tile = {"COLUMNS": columns, "CHUNK": chunk, "WHOLE": d % chunk == 0}
        return {**fixed, **tile, "PRECISION": "tf32", "num_stages": stages}
    hopper = {"CHUNK": 32, "WHOLE": d % 32 == 0, "num_warps": 4} if generation == 9 else {}
    tile = {"COLUMNS": 64, "CHUNK": 16, "WHOLE": d % 16 == 0, **hopper}
    return {**fixed, **tile, "PRECISION": float32_precision(), "num_stages": 2}


SCALES = {"ROWS": 16, "CHUNK": 128, "num_warps": 4, "num_stages": 3}
MERGE = {"ROWS": 8, "PIECE": 64, "num_warps": 4, "num_stages": 1}


def average_constants(k: int, classes: int, votes: bool) -> dict[str, Any]:
    """Compile-time constants and launch options of ``_average_kernel``."""
    sides = {"NEIGHBOURS": min(64, triton.next_power_of_2(k)), "CLASSES": min(64, triton.next_power_of_2(classes))}
    return {**sides, "VOTES": votes, "num_warps": 4, "num_stages": 1}


def _scales(x: Tensor) -> Tensor:
    scales = torch.empty(len(x), dtype=torch.float32, device=x.device)
    _scales_kernel[(triton.cdiv(len(x), SCALES["ROWS"]),)](x, scales, *x.shape, **SCALES)
    return scales


def _nearest(x: Tensor, bank: Tensor, k: int, window: Window | None) -> tuple[Tensor, Tensor]:
    """Similarities and rows, (Q, at least k): first the k nearest, in the bank's order, -inf where fewer are."""
    fixed = constants(x.dtype, x.shape[1], window is not None, _launch.gpu(x.device).generation)
    rows, columns, across = fixed["ROWS"], fixed["COLUMNS"], fixed["ACROSS"]
    height, width, radius = window or (1, len(x), 0)
    tiles, length = triton.cdiv(len(x), rows), len(bank)
    if window is not None:
        tiles = triton.cdiv(height, rows // across) * triton.cdiv(width, across)
        area = min(height, rows // across + 2 * radius) * min(width, across + 2 * radius)
        length = len(bank) // (height * width) * area  # of a tile in the middle
    parts = max(1, min(triton.cdiv(_PROGRAMS, tiles), length // (columns * _LEAST_BLOCKS)))
    room = triton.cdiv(k, columns) * columns
    most = (triton.cdiv(triton.cdiv(length, columns), parts) + 1) * columns  # what a part has, and one block
    capacity = min(room + max(room, 2 * columns), most)
    at_once = min(tiles, max(1, _WORKSPACE // (8 * rows * parts * capacity)))
    shapes = at_once * rows * parts * capacity, (len(x), parts * k)
    values, kept_values = (torch.empty(shape, dtype=torch.float32, device=x.device) for shape in shapes)
    ids, kept_ids = (torch.empty(shape, dtype=torch.int32, device=x.device) for shape in shapes)
    scales = _scales(x), _scales(bank)
    for first in range(0, tiles, at_once):
        _nearest_kernel[(min(at_once, tiles - first), parts)](
            x, bank, *scales, values, ids, kept_values, kept_ids,
            len(x), len(bank), x.shape[1], k, capacity, first, height, width, radius, **fixed,
        )  # fmt: skip
    if parts > 1:
        grid = (triton.cdiv(len(x), MERGE["ROWS"]),)
        _merge_kernel[grid](kept_values, kept_ids, len(x), k, parts * k, **MERGE)
    return kept_values, kept_ids


def average_of_nearest(
    x: Tensor,
    bank: Tensor,
    of_rows: Tensor,
    out: Tensor,
    *,
    k: int,
    temperature: float,
    window: Window | None = None,
) -> None:
    """Writes ``out`` (Q, C), of any strides, for x (Q, D) and bank (M, D), contiguous.

    of_rows: (M,) int64, the class of each row of the bank, or (M, C) float32, its values.
    """
    values, ids = _nearest(x, bank, k, window)
    classes = out.shape[1]
    fixed = average_constants(k, classes, of_rows.dim() == 1)
    blocks = triton.cdiv(classes, fixed["CLASSES"])
    _average_kernel[(len(x) * blocks,)](
        values, ids, of_rows, out, k, values.shape[1], classes, blocks, temperature, *out.stride(), **fixed
    )
