"""The CUDA kernels without a GPU: what nvcc made of them for each GPU generation."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="brings cuobjdump")

from benchmarks import kernels
from benchmarks.kernels import Kernel
from fastssl import _build

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
    "row_kernel": "merges two numbers a strip",
    "sample_kernel": "adds a few numbers a tile",
    "sort_runs_kernel": "a run is sorted in shared memory",
    "sum_rows_kernel": "adds the last partial sums",
}
# that store so, and load what lies anywhere
GATHERING = {"view_kernel": "gathers a crop's bytes"}
# that load so, and store little
REDUCING = {
    "decode_ab_kernel": "two numbers of a pixel are left of 313",
    "strip_kernel": "two numbers a row and a column are left of a strip",
    "sum_columns_kernel": "one row is left of all",
    "tile_kernel": "a few numbers are left of a tile",
}

# Variants that take what does not lie on 16 bytes, or rows that are not made of whole packs, an element at a time: the
# host chooses them where `packable` of packs.cuh, or its like, says so. What tells them among a kernel's template
# arguments: the elements that move at once are 1, or `kPacked` is false.
ONE_AT_A_TIME, NOT_PACKED = r"I\w*?Li1E", r"I\w*?Lb0E"
ELEMENTWISE = {
    **dict.fromkeys(("give_back_kernel", "restore_kernel", "take_kernel", "enqueue_kernel"), ONE_AT_A_TIME),
    **dict.fromkeys(("decode_ab_kernel", "map_pixels_kernel"), ONE_AT_A_TIME),
    **dict.fromkeys(("assign_kernel", "gradient_kernel", "strip_kernel"), NOT_PACKED),
    **dict.fromkeys(("sum_columns_kernel", "tile_kernel"), NOT_PACKED),
}

pytestmark = pytest.mark.skipif(importlib.util.find_spec("fastssl._cuda") is None, reason="fastssl._cuda was not built")


@pytest.fixture(scope="module")
def module() -> Path:
    assert not _build.stale(), _build.stale()  # what follows would be told of other kernels
    return kernels.module()


@pytest.fixture(scope="module")
def compiled(module: Path) -> list[Kernel]:
    return list(kernels.cuda_kernels(module))


def test_no_kernel_spills_its_registers(compiled: list[Kernel]) -> None:
    assert {kernel.source for kernel in compiled} - {kernels.SEVERAL} == set(SOURCES)
    assert {kernel.architecture for kernel in compiled} == set(kernels.SHARED)
    assert not [kernel for kernel in compiled if kernel.stack or kernel.local]


def elementwise(kernel: Kernel) -> bool:
    return kernel.name in ELEMENTWISE and re.match(ELEMENTWISE[kernel.name], kernel.variant) is not None


def test_memory_is_moved_16_bytes_at_a_time(compiled: list[Kernel]) -> None:
    """By every variant but those that take an element at a time; of such a kernel as many do not."""
    assert {*NARROW, *GATHERING, *REDUCING, *ELEMENTWISE} <= {kernel.name for kernel in compiled}
    in_packs = [kernel for kernel in compiled if not elementwise(kernel)]
    assert not [kernel for kernel in in_packs if not kernel.wide_loads and kernel.name not in {*NARROW, *GATHERING}]
    assert not [kernel for kernel in in_packs if not kernel.wide_stores and kernel.name not in {*NARROW, *REDUCING}]
    for name in ELEMENTWISE:
        chosen = [elementwise(kernel) for kernel in compiled if kernel.name == name]
        assert chosen.count(True) == chosen.count(False), name


def test_the_published_table_is_of_these_kernels(compiled: list[Kernel]) -> None:
    changed = kernels.outdated(kernels.rows(compiled), "nvcc", kernels.nvcc_version())
    assert not changed, "run python -m benchmarks.kernels, then python -m benchmarks.publish"


def test_a_kernel_has_its_name_in_the_source() -> None:
    assert kernels.plain("_ZN7fastssl4cuda50_GLOBAL__N__7f23_cu_44530d8711rank_kernelEPKm") == "rank_kernel"
    by_chance = "_ZN7fastssl4cuda49_GLOBAL__N__49f3eab2_17_random_masking_cu_44530d8711rank_kernelEPKm"  # 49 letters on
    assert kernels.plain(by_chance) == "rank_kernel"
    assert kernels.plain("_ZN7fastssl4cuda15sum_rows_kernelIffEEvPKT_") == "sum_rows_kernel"


def test_a_kernel_can_be_resident() -> None:
    """As CUDA's occupancy calculator has it, for a block of 256 threads."""
    common = dict(source="", name="", stack=0, local=0, threads=256, wide_loads=0, wide_stores=0)
    at = {"registers": 64, "shared": 0, "architecture": 90}
    assert Kernel(**common, **at).occupancy == 50
    assert Kernel(**common, **{**at, "registers": 32}).occupancy == 100
    assert Kernel(**common, **{**at, "shared": 100 * 1024}).occupancy == 25
    assert Kernel(**common, **{**at, "registers": 255}).occupancy == 12
