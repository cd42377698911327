"""What the kernels of the contrastive losses are made of: blocks of rows, their similarities, running softmaxes.

Constants that all of them share: D features a row; a block is ROWS rows by COLUMNS columns; similarities are summed
over CHUNKs of features, and sums of columns are kept for OUT features; OPERAND is the type that is multiplied.
A launch has a block of rows along axis 0, a part of the columns along axis 1, and OUT features along axis 2.
"""

from __future__ import annotations

import triton
import triton.language as tl

# Numbers of rows change from batch to batch, and with them where a slice of statistics begins; a kernel is compiled
# anew for the dtype and the features alone.
kernel = triton.jit(
    do_not_specialize=["n", "m", "parts", "per"],
    do_not_specialize_on_alignment=[
        "maxima", "totals", "losses", "slopes", "lse", "share", "of_rows", "of_columns", "statistics",
    ],
)  # fmt: skip


@triton.jit
def load_rows(
    x, first, feature, rows, D: tl.constexpr, ROWS: tl.constexpr, FEATURES: tl.constexpr, OPERAND: tl.constexpr
):
    """Rows first .. first + ROWS and features feature .. feature + FEATURES of x (rows, D); zeros past either end."""
    i, k = first + tl.arange(0, ROWS), feature + tl.arange(0, FEATURES)
    inside = (i < rows)[:, None]
    if D % FEATURES != 0:
        inside = inside & (k < D)[None, :]
    return tl.load(x + i.to(tl.int64)[:, None] * D + k[None, :], mask=inside, other=0.0).to(OPERAND)


@triton.jit
def similarities(
    rows, columns, first, second, n, m, scale,
    D: tl.constexpr, CHUNK: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    OPERAND: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """scale * <row, column> of ROWS rows (n, D) from ``first`` and COLUMNS columns (m, D) from ``second``."""
    s = tl.zeros((ROWS, COLUMNS), tl.float32)
    for feature in range(0, D, CHUNK):
        a = load_rows(rows, first, feature, n, D, ROWS, CHUNK, OPERAND)
        b = load_rows(columns, second, feature, m, D, COLUMNS, CHUNK, OPERAND)
        s = tl.dot(a, tl.trans(b), s, input_precision=PRECISION)
    return s * scale


@triton.jit
def part_of_columns(m, per, COLUMNS: tl.constexpr):
    """The first and the end of this program's blocks of columns, ``per`` a part."""
    start = tl.program_id(1) * per
    return start, tl.minimum(start + per, tl.cdiv(m, COLUMNS))


@triton.jit
def absorb(s, maximum, total):
    """The running maximum and sum of exp(s - maximum) of each row with s; those terms, and what the old are worth."""
    new_maximum = tl.maximum(maximum, tl.max(s, 1))
    weights = tl.exp(s - new_maximum[:, None])
    kept = tl.exp(maximum - new_maximum)
    return new_maximum, total * kept + tl.sum(weights, 1), weights, kept


@triton.jit
def add_weighted(
    sums, weights, columns, second, m,
    D: tl.constexpr, OUT: tl.constexpr, COLUMNS: tl.constexpr, OPERAND: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Adds, to the sums (ROWS, OUT) of a block of rows, the columns from ``second`` times their weights."""
    values = load_rows(columns, second, tl.program_id(2) * OUT, m, D, COLUMNS, OUT, OPERAND)
    return tl.dot(weights.to(OPERAND), values, sums, input_precision=PRECISION)


@triton.jit
def store_sums(sums, into, n, D: tl.constexpr, ROWS: tl.constexpr, OUT: tl.constexpr):
    """Writes this program's sums into ``into`` (parts, n, D)."""
    i, k = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.program_id(2) * OUT + tl.arange(0, OUT)
    inside = (i < n)[:, None]
    if D % OUT != 0:
        inside = inside & (k < D)[None, :]
    row = tl.program_id(1).to(tl.int64) * n + i
    tl.store(into + row[:, None] * D + k[None, :], sums, mask=inside)


@triton.jit
def _column(number):
    """A column's number in 32 bits, -1 where it needs more: it is no column's then."""
    return tl.where((number >= 0) & (number < 2**31 - 1), number, -1).to(tl.int32)


@triton.jit
def target_of(i, targets, n, VIEWS: tl.constexpr):
    """Each row's positive among the columns: ``targets``, or by default its other view, or its own number."""
    if targets is not None:
        target = _column(tl.load(targets + i, mask=i < n, other=-1))
    elif VIEWS:
        target = tl.where(i < n // 2, i + n // 2, i - n // 2)
    else:
        target = i
    return target


@triton.jit
def excluded_of(i, exclude, n, VIEWS: tl.constexpr):
    """The column that each row leaves out, -1 for none: ``exclude``, or its own where the rows are two views."""
    if exclude is not None:
        excluded = _column(tl.load(exclude + i, mask=i < n, other=-1))
    elif VIEWS:
        excluded = i
    else:
        excluded = tl.full(i.shape, -1, tl.int32)
    return excluded


@triton.jit
def two_of(statistics, j, n, OTHER: tl.constexpr):
    """Two statistics (2, n) of each column, OTHER past the end.

    They are loaded together since of fewer numbers than a program has threads each thread would load all that it needs
    for its part of the similarities, one by one.
    """
    which = tl.arange(0, 2)[:, None]
    both = tl.load(statistics + which * n + j[None, :], mask=(j < n)[None, :], other=OTHER)
    return tl.sum(tl.where(which == 0, both, 0.0), 0), tl.sum(tl.where(which == 1, both, 0.0), 0)


@triton.jit
def span(numbers, counting):
    """The least and the most of the numbers that count."""
    return tl.min(tl.where(counting, numbers, 2**31 - 1), 0), tl.max(tl.where(counting, numbers, -1), 0)


@triton.jit
def touches(second, COLUMNS: tl.constexpr, least, most):
    """Whether the columns from ``second`` may hold a number of that span."""
    return (second <= most) & (least < second + COLUMNS)


@triton.jit
def log1p(x):
    """log(1 + x), as exact for a small x as for a large one: what 1 + x rounds away is added by its derivative."""
    rounded = 1.0 + x
    return tl.log(rounded) + (x - (rounded - 1.0)) * (1.0 / rounded)
