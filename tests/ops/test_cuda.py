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
# where few bytes come or go 16 at a time, and why
NARROW_LOADS = {
    "csrc/cuda/block_masking.cu": "a mask is made of bits in shared memory",
    "csrc/cuda/encode_ab.cu": "a thread has one pixel and all bins: it computes",
    "csrc/cuda/random_masking.cu": "a sample is sorted in shared memory",
}
NARROW_STORES = {
    **NARROW_LOADS,
    "csrc/cuda/decode_ab.cu": "two numbers of a pixel are left of 313",
    "csrc/cuda/update_center.cu": "one row is left of all",
}

pytestmark = pytest.mark.skipif(importlib.util.find_spec("fastssl._cuda") is None, reason="fastssl._cuda was not built")


@pytest.fixture(scope="module")
def compiled() -> list[Kernel]:
    return list(kernels.cuda_kernels(kernels.module()))


def test_no_kernel_spills_its_registers(compiled: list[Kernel]) -> None:
    assert {kernel.source for kernel in compiled} - {kernels.SEVERAL} == set(SOURCES)
    assert {kernel.architecture for kernel in compiled} == set(kernels.SHARED)
    assert not [kernel for kernel in compiled if kernel.stack or kernel.local]


@pytest.mark.parametrize("source", SOURCES)
def test_memory_is_moved_16_bytes_at_a_time(compiled: list[Kernel], source: str) -> None:
    for architecture in kernels.SHARED:
        found = [kernel for kernel in compiled if (kernel.source, kernel.architecture) == (source, architecture)]
        assert any(kernel.wide_loads for kernel in found) or source in NARROW_LOADS, architecture
        assert any(kernel.wide_stores for kernel in found) or source in NARROW_STORES, architecture


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
