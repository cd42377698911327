"""The CUDA kernels without a GPU: what nvcc made of them for each GPU generation."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="brings cuobjdump")

from benchmarks import kernels
from benchmarks.kernels import Kernel

ROOT = Path(__file__).parent.parent.parent
SOURCES = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "csrc" / "cuda").glob("*.cu"))
# kernels that neither load nor store 16 bytes at a time, and why
NARROW = {
    "advance_kernel": "one number",
    "block_masking_kernel": "a mask is made of bits in shared memory",
    "encode_ab_kernel": "a thread has one pixel and all bins: it computes",
    "invert_kernel": "scatters indices",
    "luma_kernel": "gathers a crop's bytes, of which one number is left",
    "mean_kernel": "adds a number a sample",
    "random_masking_kernel": "a sample is sorted in shared memory",
    "rank_kernel": "searches among sorted keys",
    "sample_kernel": "adds a few numbers a tile",
    "sort_runs_kernel": "a run is sorted in shared memory",
    "sum_rows_kernel": "adds the last partial sums",
}
# that store so, and load what lies anywhere
GATHERING = {"view_kernel": "gathers a crop's bytes"}
# that load so, and store little
REDUCING = {
    "decode_ab_kernel": "two numbers of a pixel are left of 313",
    "sum_columns_kernel": "one row is left of all",
    "tile_kernel": "a few numbers are left of a tile",
}

pytestmark = pytest.mark.skipif(importlib.util.find_spec("fastssl._cuda") is None, reason="fastssl._cuda was not built")


@pytest.fixture(scope="module")
def compiled() -> list[Kernel]:
    return list(kernels.cuda_kernels(kernels.module()))


def test_no_kernel_spills_its_registers(compiled: list[Kernel]) -> None:
    assert {kernel.source for kernel in compiled} - {kernels.SEVERAL} == set(SOURCES)
    assert {kernel.architecture for kernel in compiled} == set(kernels.SHARED)
    assert not [kernel for kernel in compiled if kernel.stack or kernel.local]


def test_memory_is_moved_16_bytes_at_a_time(compiled: list[Kernel]) -> None:
    """By some variant of each kernel: others take what lies elsewhere than on 16 bytes."""
    rows = kernels.rows(compiled)
    assert {*NARROW, *GATHERING, *REDUCING} <= {row["kernel"] for row in rows}
    assert not [row for row in rows if not row["wide_loads"] and row["kernel"] not in {*NARROW, *GATHERING}]
    assert not [row for row in rows if not row["wide_stores"] and row["kernel"] not in {*NARROW, *REDUCING}]


def test_the_published_table_is_of_these_kernels(compiled: list[Kernel]) -> None:
    changed = kernels.outdated(kernels.rows(compiled), "nvcc", kernels.nvcc_version())
    assert not changed, "run python -m benchmarks.kernels, then python -m benchmarks.publish"


def test_a_kernel_has_its_name_in_the_source() -> None:
    assert kernels.plain("_ZN7fastssl4cuda50_GLOBAL__N__7f23_cu_44530d8711rank_kernelEPKm") == "rank_kernel"
    assert kernels.plain("_ZN7fastssl4cuda15sum_rows_kernelIffEEvPKT_") == "sum_rows_kernel"


def test_a_kernel_can_be_resident() -> None:
    """As CUDA's occupancy calculator has it, for a block of 256 threads."""
    common = dict(source="", name="", stack=0, local=0, threads=256, wide_loads=0, wide_stores=0)
    at = {"registers": 64, "shared": 0, "architecture": 90}
    assert Kernel(**common, **at).occupancy == 50
    assert Kernel(**common, **{**at, "registers": 32}).occupancy == 100
    assert Kernel(**common, **{**at, "shared": 100 * 1024}).occupancy == 25
    assert Kernel(**common, **{**at, "registers": 255}).occupancy == 12
