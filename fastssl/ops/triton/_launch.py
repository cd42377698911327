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
    warps: int = 8
    stages: int = 2  # of the columns' copies to shared memory: how many are under way


_ANY = 2**31
_Tables = dict[str, dict[int, _Blocks]]  # of a kind of kernel by the features, up to those

# The largest blocks that ptxas keeps in registers for every GPU generation, and that its shared memory holds
# (tests/ops/test_triton.py), reasoned and not searched for. 16-bit rows come by 64 and 128: columns read from the L2
# cache serve many rows. Where all features are one chunk, columns are read once for both products. float32 operands
# stand in registers as two, so their blocks are smaller. Beyond OUT, features are shared among programs, which
# recompute the similarities. Crowded kernels turn a similarity into what takes many registers itself; where the
# features are no power of two, masks take registers too.
_GENERAL: _Tables = {
    "narrow": {128: _Blocks(128, 128, 128), _ANY: _Blocks(128, 64, 64)},
    "narrow masked": {128: _Blocks(128, 64, 128), _ANY: _Blocks(128, 64, 64)},
    "narrow sums": {
        128: _Blocks(128, 64, 128, 128),
        256: _Blocks(64, 64, 256, 256),
        _ANY: _Blocks(64, 32, 64, 512),
    },
    "narrow crowded": {_ANY: _Blocks(128, 32, 64)},
    "narrow crowded sums": {
        128: _Blocks(128, 32, 128, 128),
        256: _Blocks(64, 64, 64, 256),
        _ANY: _Blocks(64, 32, 64, 512),
    },
    "wide": {_ANY: _Blocks(64, 64, 32, stages=1)},
    "wide sums": {128: _Blocks(64, 32, 32, 128, stages=1), _ANY: _Blocks(32, 32, 32, 256, stages=1)},
    "wide crowded sums": {128: _Blocks(64, 32, 32, 128, stages=1), _ANY: _Blocks(32, 16, 32, 256, stages=1)},
}
# The fastest of those that were tried on an H100, where a few spilled bytes cost less than smaller blocks. A warp group
# multiplies 64 rows at once, so programs of 64 rows have 4 warps: for 8, half of a product would be done twice.
_HOPPER: _Tables = {
    "narrow": {
        64: _Blocks(128, 128, 64, stages=3),
        128: _Blocks(64, 128, 128, warps=4, stages=3),
        256: _Blocks(128, 128, 256),
        _ANY: _Blocks(128, 256, 64, stages=3),
    },
    "narrow masked": {128: _Blocks(128, 128, 128, stages=3), _ANY: _Blocks(128, 128, 64, stages=3)},
    "narrow sums": {
        128: _Blocks(64, 64, 128, 128, warps=4, stages=3),
        256: _Blocks(128, 64, 256, 256),
        512: _Blocks(64, 32, 512, 512),  # 8 warps, for the registers of 512 sums a row
        _ANY: _Blocks(64, 64, 64, 512, stages=4),
    },
    "narrow crowded": {_ANY: _Blocks(128, 128, 64, stages=3)},
    "narrow crowded sums": {
        128: _Blocks(64, 64, 128, 128, warps=4),
        256: _Blocks(128, 64, 256, 256),
        512: _Blocks(64, 32, 512, 512),
        _ANY: _Blocks(64, 64, 64, 512, stages=4),
    },
    "wide": {_ANY: _Blocks(128, 128, 64, stages=1)},
    "wide sums": {128: _Blocks(128, 64, 128, 128, stages=1), _ANY: _Blocks(128, 64, 64, 256, stages=1)},
}

REGISTERS = 255  # of a thread, the most there are: a processor has them for one program of 8 warps


@dataclass(frozen=True)
class Gpu:
    """What the launches look at; without a GPU, where they are interpreted or compiled, an H100's processors."""

    generation: int = 8
    processors: int = 132


@functools.cache
def gpu(device: torch.device) -> Gpu:
    if device.type != "cuda":
        return Gpu()
    properties = torch.cuda.get_device_properties(device)
    return Gpu(properties.major, properties.multi_processor_count)


def _blocks(kind: str, d: int, generation: int) -> _Blocks:
    """The generation's own, or else the general ones; a kind without a table is like that with a word less."""
    tables = _HOPPER if generation == 9 else _GENERAL
    without = (kind.replace(word, "") for word in ("", " masked", " crowded"))
    found = next(tables[name] for name in (*without, kind.split()[0]) if name in tables)
    return next(blocks for most, blocks in found.items() if d <= most)


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
    more than half of them, to have two programs on a processor; ``split`` counts on one of 8 warps.
    """
    operand = rows.dtype if rows.dtype == columns.dtype else torch.float32  # what holds both
    wide, d = operand == torch.float32, rows.shape[1]
    padded = max(16, triton.next_power_of_2(d))
    kind = ("wide" if wide else "narrow") + " crowded" * crowded + " masked" * (d != padded and not sums)
    blocks = _blocks(kind + " sums" * sums, d, gpu(rows.device).generation)
    fixed = {
        "D": d,
        "ROWS": blocks.rows,
        "COLUMNS": blocks.columns,
        "CHUNK": min(blocks.chunk, padded),
        "OUT": min(blocks.out, padded),
        "OPERAND": _TYPES[operand],
        "PRECISION": float32_precision() if wide else "tf32",
        "num_warps": blocks.warps,
        "num_stages": blocks.stages,
    }
    spilling = d != padded or (crowded and sums and d < 128)
    return {**fixed, "maxnreg": REGISTERS} if spilling else fixed


def split(rows: Tensor, columns: Tensor, fixed: dict[str, Any]) -> tuple[int, int]:
    """Parts of the columns that rows are to be compared with, at least one, and blocks a part."""
    at_once = gpu(rows.device).processors * (8 // fixed["num_warps"])
    programs = math.prod(grid(rows, 1, fixed))
    return _split(programs, triton.cdiv(len(columns), fixed["COLUMNS"]), at_once)


@functools.lru_cache(maxsize=1024)
def _split(programs: int, blocks: int, at_once: int) -> tuple[int, int]:
    """The fewest rounds of work; the GPU's registers hold so many programs at once."""

    def time(parts: int) -> int:
        return int(triton.cdiv(programs * parts, at_once) * (triton.cdiv(blocks, parts) + PROLOGUE))

    per = triton.cdiv(max(blocks, 1), min(range(1, at_once + 1), key=time))
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
