"""How many exponentials a second Triton's kernels compute: chains of them in registers, memory left alone."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from benchmarks import where
from benchmarks.gpu import floors

PROGRAMS, BLOCK, CHAIN = 132 * 64, 1024, 256


@triton.jit
def _chains(out, BLOCK: tl.constexpr, CHAIN: tl.constexpr):  # noqa: N803
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = i.to(tl.float32) * 1e-9
    for _ in range(CHAIN):
        x = tl.exp(-x)
    tl.store(out + i, x)


def rate() -> float:
    out = torch.empty(PROGRAMS * BLOCK, device=where.device())
    return floors.rate(float(PROGRAMS * BLOCK * CHAIN), lambda: _chains[(PROGRAMS,)](out, BLOCK, CHAIN, num_warps=4))
