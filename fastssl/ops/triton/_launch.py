"""Compile-time constants, launch options and grids of the contrastive kernels, from dtypes and sizes alone."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn.functional import pad

PROCESSORS = 132  # of an H100, where the tensors are on no GPU
PROLOGUE = 4  # blocks of columns that a program could do in the time it takes to begin and to write its sums
ELEMENTS = 2048  # of partial results that one small program has in its registers at once
_TYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}


@dataclass(frozen=True)
class _Blocks:
    """A block's rows, columns, and features that are multiplied at once; OUT, of how many features it keeps sums."""

    rows: int
    columns: int
    chunk: int
    out: int = 0


# By the features, up to those: the largest blocks that ptxas keeps in registers for every GPU generation, and that its
# shared memory holds (tests/ops/test_triton.py), reasoned and not searched for. 16-bit rows come by 64 and 128: wgmma
# takes 64 a warp group, and columns read from the L2 cache serve many rows. Where all features are one chunk, columns
# are read once for both products. float32 operands stand in registers as two, so their blocks are smaller. Beyond OUT,
# features are shared among programs, which recompute the similarities.
_ANY = 2**31
_NARROW = {128: _Blocks(128, 128, 128), _ANY: _Blocks(128, 64, 64)}
_MASKED = {128: _Blocks(128, 64, 128), _ANY: _Blocks(128, 64, 64)}  # no power of two: masks take registers too
_NARROW_SUMS = {128: _Blocks(128, 64, 128, 128), 256: _Blocks(64, 64, 256, 256), _ANY: _Blocks(64, 32, 64, 512)}
_WIDE = {_ANY: _Blocks(64, 64, 32)}
_WIDE_SUMS = {128: _Blocks(64, 32, 32, 128), _ANY: _Blocks(32, 32, 32, 256)}
# where what a similarity is turned into takes many registers itself
_CROWDED = {_ANY: _Blocks(128, 32, 64)}
_CROWDED_SUMS = {128: _Blocks(128, 32, 128, 128), 256: _Blocks(64, 64, 64, 256), _ANY: _Blocks(64, 32, 64, 512)}
_WIDE_CROWDED_SUMS = {128: _Blocks(64, 32, 32, 128), _ANY: _Blocks(32, 16, 32, 256)}
REGISTERS = 255  # of a thread, the most there are: a processor has them for one program of 8 warps


def _table(wide: bool, sums: bool, crowded: bool, masked: bool) -> dict[int, _Blocks]:
    if wide:
        return _WIDE if not sums else _WIDE_CROWDED_SUMS if crowded else _WIDE_SUMS
    if crowded:
        return _CROWDED_SUMS if sums else _CROWDED
    return _NARROW_SUMS if sums else _MASKED if masked else _NARROW


def float32_precision() -> str:
    """Three tf32 products hold float32's accuracy on the tensor cores; one, where torch's own products may use it.

    torch's newer setting is asked where it has one: once that is used, reading the older one raises.
    """
    matmul = torch.backends.cuda.matmul
    chosen = getattr(matmul, "fp32_precision", None)
    one = chosen == "tf32" if chosen not in (None, "none") else matmul.allow_tf32
    return "tf32" if one else "tf32x3"


def constants(rows: Tensor, columns: Tensor, *, sums: bool, crowded: bool = False) -> dict[str, Any]:
    """Of a kernel that walks ``columns`` for each block of ``rows``, and sums them weighted if ``sums``.

    ``crowded`` where what a similarity is turned into takes many registers itself. The registers are named where the
    features are no power of two, or few beside crowded sums, for which ptxas would rather spill a few bytes than take
    more than half of them, to have two programs on a processor; ``split`` counts on one.
    """
    operand = rows.dtype if rows.dtype == columns.dtype else torch.float32  # what holds both
    wide, d = operand == torch.float32, rows.shape[1]
    padded = max(16, triton.next_power_of_2(d))
    table = _table(wide, sums, crowded, d != padded)
    blocks = next(blocks for most, blocks in table.items() if d <= most)
    fixed = {
        "D": d,
        "ROWS": blocks.rows,
        "COLUMNS": blocks.columns,
        "CHUNK": min(blocks.chunk, padded),
        "OUT": min(blocks.out, padded),
        "OPERAND": _TYPES[operand],
        "PRECISION": float32_precision() if wide else "tf32",
        "num_warps": 8,
        "num_stages": 1 if wide else 2,
    }
    spilling = d != padded or (crowded and sums and d < 128)
    return {**fixed, "maxnreg": REGISTERS} if spilling else fixed


def split(rows: Tensor, columns: Tensor, fixed: dict[str, Any]) -> tuple[int, int]:
    """Parts of the columns that rows are to be compared with, at least one, and blocks a part."""
    processors = torch.cuda.get_device_properties(rows.device).multi_processor_count if rows.is_cuda else PROCESSORS
    programs = math.prod(grid(rows, 1, fixed))
    return _split(programs, triton.cdiv(len(columns), fixed["COLUMNS"]), processors)


@functools.lru_cache(maxsize=1024)
def _split(programs: int, blocks: int, processors: int) -> tuple[int, int]:
    """The fewest rounds of work, each processor's registers holding one program of 8 warps at a time."""

    def time(parts: int) -> int:
        return int(triton.cdiv(programs * parts, processors) * (triton.cdiv(blocks, parts) + PROLOGUE))

    per = triton.cdiv(max(blocks, 1), min(range(1, processors + 1), key=time))
    return max(1, triton.cdiv(blocks, per)), per


def grid(rows: Tensor, parts: int, fixed: dict[str, Any]) -> tuple[int, int, int]:
    """Blocks of rows, parts of the columns, blocks of the features that are summed."""
    features = triton.cdiv(fixed["D"], fixed["OUT"]) if fixed["OUT"] else 1
    return triton.cdiv(len(rows), fixed["ROWS"]), parts, features


def parts_at_once(parts: int) -> int:
    """How many parts a program that combines them loads together."""
    return min(16, int(triton.next_power_of_2(parts)))


def aligned(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Contiguous rows (n, d), each of which begins at 16 bytes: where they do not, copies with zeros behind them.

    Rows that begin anywhere would be loaded one feature at a time, and not ahead of time.
    """
    missing = -tensors[0].shape[1] % (16 // min(x.element_size() for x in tensors))

    def one(x: Tensor) -> Tensor:
        if missing:
            return pad(x, (0, missing)).contiguous()
        x = x.contiguous()
        return x.clone() if x.data_ptr() % 16 else x

    return tuple(one(x) for x in tensors)


def floats(*shape: int, like: Tensor) -> Tensor:
    """Memory for float32 results."""
    return torch.empty(shape, dtype=torch.float32, device=like.device)
