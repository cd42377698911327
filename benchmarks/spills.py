"""Bytes of a thread's values that the Triton kernels may spill to its stack: tests/ops/test_triton.py asks for no more.

On compute capability 9.0 the blocks of the products are those that were the fastest on an H100, of the ones tried while
they were chosen: larger ones spill, and took less time all the same. Without spills float32 took 1.6 times as long with
up to 128 features, 2.3 times with 512; knn_classify 2.5 times as long; 16 bits 1.25 to 1.4 times with 256 features and
2.2 times with 512. What was tried then is not among the results.
"""

from __future__ import annotations

import torch

FEW = 40  # ten of a thread's 255 registers
NEAREST, WIDE, WIDE_LONG, NARROW_LONG = 600, 300, 1000, 360  # on 9.0


def allowed(kernel: str, dtype: torch.dtype, d: int, architecture: int) -> int:
    """Of a kernel on rows of d features."""
    if architecture != 90:
        return FEW
    if dtype == torch.float32:
        return NEAREST if "_nearest" in kernel else FEW if d < 64 else WIDE if d <= 128 else WIDE_LONG
    return FEW if d <= 128 else NARROW_LONG
