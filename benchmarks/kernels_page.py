"""The text of docs/gpu-kernels.md: what is demanded of the GPU kernels' compiled code, and a row for each kernel."""

from __future__ import annotations

from typing import Any

from benchmarks import spills
from benchmarks.markdown import MADE, table_of
from benchmarks.summary import Row

READ = """\
What each GPU kernel takes, as compiled for compute capability {generations}: registers a thread, bytes of shared memory
a block (of a CUDA kernel those known before the launch), and the share of a multiprocessor's warps that can be there
at once, but for memory that only the launch asks for. Of a kernel's variants (types, widths) the one of least
occupancy is told. *Wide* are the instructions that load and store 16 bytes a thread, in the variant that has the most.
*Stack* are bytes a thread of what the registers do not hold: spills. The Triton kernels are those of 128 features.
`python -m benchmarks.kernels` measures anew; it needs no GPU. Compiled by nvcc {nvcc} and Triton {triton}.

tests/ops/test_cuda.py and test_triton.py demand on each of these generations:

- **No spills of a CUDA kernel**, and no stack frame. A Triton kernel may spill {spills.FEW} bytes a thread; more on
  9.0 alone, where larger blocks were faster on an H100 although they spill: up to {spills.WIDE} for float32 with 64 to
  128 features, {spills.WIDE_LONG} with more, {spills.NEAREST} for the search of the nearest rows, and
  {spills.NARROW_LONG} for 16 bits with more than 128 features. benchmarks/spills.py has the reasons.
- **16 bytes a thread at a time**, loaded and stored, by every variant, but for exceptions that these tests name one by
  one with a reason: what sorts, scatters, gathers from anywhere, or leaves less than 16 bytes a thread of what it read.
- **Tensor-core instructions** in Triton's products: for 16 bits `wgmma` on 9.0 and `tcgen05` on 10.0.
- **No instruction for global memory** on an address that may be in shared or local memory, in the CUDA kernels' PTX.

Blocks, warps and stages of the Triton kernels are tables in the repository (fastssl/ops/triton/_launch.py and
_neighbours.py), by type, features and generation: nothing is searched for at run time, for a choice by measured time
may fall out otherwise in the next run, and other blocks give other roundings. Those of 9.0 were the fastest of
those that were tried on an H100; what was tried is not among the results. Those of 8.0 and 10.0 are reasoned from
registers and shared memory and were never timed.
"""


def page(measured: dict[str, Any]) -> str:
    """Of what ``python -m benchmarks.kernels`` wrote; a kernel's generations stand beside one another."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in measured["rows"]:
        groups.setdefault((row["source"], row["kernel"]), []).append(row)
    rows = []
    for (source, kernel), generations in groups.items():
        told = [" / ".join(str(row[key]) for row in generations) for key in ("registers", "stack", "shared")]
        occupancy = " / ".join(f"{row['occupancy']} %" for row in generations)
        wide = " / ".join(f"{row['wide_loads']}+{row['wide_stores']}" for row in generations)
        rows.append([f"`{source}`", f"`{kernel}`", generations[0]["variants"], *told, occupancy, wide])
    architectures = sorted({row["architecture"] for row in measured["rows"]})
    generations_told = " / ".join(f"{a / 10:.1f}" for a in architectures)
    read = READ.format(generations=generations_told, spills=spills, **measured["compilers"])
    head = ["source", "kernel", "variants", "registers", "stack", "shared", "occupancy", "wide loads+stores"]
    return "\n".join([MADE, "# What the GPU kernels take\n", read, table_of(head, 2, rows), ""])
