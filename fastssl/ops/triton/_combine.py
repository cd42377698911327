"""The sum of what several programs found for the same rows, in the order of their parts.

    out_ik = factor * scalar * weight_i * sum_p sums_pik        scalar and weights are 1 where not given

Grid: one program a run of elements; float32 sums, rounded once to the type of ``out``. Bytes: sums once, out once.
Triton and not CUDA: the kernels whose sums these are are Triton's, and so are their types and launches.
Reference and tests: those of the ops that call it.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from fastssl.ops.triton import _blocks, _launch


@_blocks.kernel
def _combine_kernel(
    sums, out, scalar, weights, n, parts, factor,
    D: tl.constexpr, OUT: tl.constexpr, PARTS: tl.constexpr, ELEMENTS: tl.constexpr,
):  # fmt: skip
    e = tl.program_id(0).to(tl.int64) * ELEMENTS + tl.arange(0, ELEMENTS)
    size = n.to(tl.int64) * D
    total = tl.zeros((ELEMENTS,), tl.float32)
    for first in range(0, parts, PARTS):
        part = first + tl.arange(0, PARTS)
        inside = (part < parts)[:, None] & (e < size)[None, :]
        values = tl.load(sums + part.to(tl.int64)[:, None] * size + e[None, :], mask=inside, other=0.0)
        total += tl.sum(values.to(tl.float32), 0)
    total *= factor
    if scalar is not None:
        total *= tl.load(scalar)
    if weights is not None:
        total *= tl.load(weights + e // D, mask=e < size, other=0.0)
    if OUT == D:
        tl.store(out + e, total, mask=e < size)
    else:  # features beyond the rows' own
        tl.store(out + e // D * OUT + e % D, total, mask=(e < size) & (e % D < OUT))


def combine(
    sums: Tensor, out: Tensor, factor: float, scalar: Tensor | None = None, weights: Tensor | None = None
) -> None:
    """sums (parts, n, d), out (n, d or fewer), scalar () float32, weights (n) float32; all contiguous."""
    parts, n, d = sums.shape
    at_once = _launch.parts_at_once(parts)
    elements = _launch.ELEMENTS // at_once
    grid = (triton.cdiv(n * d, elements),)
    fixed = {"D": d, "OUT": out.shape[1], "PARTS": at_once, "ELEMENTS": elements}
    _combine_kernel[grid](sums, out, scalar, weights, n, parts, factor, **fixed)
