"""The CUDA kernels without a GPU: what nvcc made of them for each GPU generation."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="brings cuobjdump")

from benchmarks import kernels, launches
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
    assert ELEMENTWISE.keys() <= {kernel.name for kernel in compiled}
    in_packs = [kernel for kernel in compiled if not elementwise(kernel)]
    assert {kernel.name for kernel in in_packs if not kernel.wide_loads} == {*NARROW, *GATHERING}
    assert {kernel.name for kernel in in_packs if not kernel.wide_stores} == {*NARROW, *REDUCING}
    for name in ELEMENTWISE:
        chosen = [elementwise(kernel) for kernel in compiled if kernel.name == name]
        assert chosen.count(True) == chosen.count(False), name


REGISTER = re.compile(r"%\w+")


def statements(ptx: str) -> list[tuple[str, str]]:
    """(instruction, operands) of a function in PTX, without labels and predicates."""
    plain = re.sub(r"//.*|\$\w+:|@!?%\w+", "", ptx)
    found = (statement.lstrip("{} \t\n").replace("\t", " ").partition(" ") for statement in plain.split(";"))
    return [(instruction, operands.strip()) for instruction, _, operands in found if operands]


def of_no_global_memory(code: list[tuple[str, str]]) -> set[str]:
    """The registers whose address may be in shared or local memory.

    ``cvta.shared`` and ``cvta.local`` make them; all that is computed of one is taken for another.
    """
    own: set[str] = set()
    before = -1
    while before < len(own):  # a loop hands an address back to what stands above
        before = len(own)
        for instruction, operands in code:
            to = re.findall(r"^(?:\{[^}]*\}|[^,]*)", operands)[0]
            of = {*REGISTER.findall(operands[len(to) :])}
            computed = own & of and not re.match(r"(ld|st|atom|red|setp|call)\b", instruction)
            if computed or instruction.startswith(("cvta.shared", "cvta.local")):
                own |= {*REGISTER.findall(to)}
    return own


def misplaced(ptx: str) -> list[str]:
    """What takes an address that may be in shared or local memory for one in global memory, or hands it on."""
    found = []
    for function in re.split(r"\.(?:entry|func)\b", ptx)[1:]:
        code = statements(function.partition("{")[2])
        own = of_no_global_memory(code)
        for instruction, operands in code:
            addresses = re.findall(r"\[([^\]]*)\]", operands)
            taken = addresses[-1] if addresses and ".global" in instruction else ""  # by a copy: whence
            if re.match(r"(st|atom|red|call)\b", instruction):
                taken += re.sub(r"\[[^\]]*\]", "", operands)
            if own & {*REGISTER.findall(taken)}:
                name = re.search(r"\w+(?=\s*\()", function)
                found.append(f"{kernels.plain(name[0]) if name else ''}: {instruction} {operands}")
    return found


FAULTS = """
extern "C" __global__ void one_block_kernel(int* out) {
    __shared__ int4 shared[64];
    __stwb(shared + threadIdx.x, int4{1, 2, 3, 4});
    __syncthreads();
    out[threadIdx.x] = shared[threadIdx.x].x;
}
extern "C" __global__ void either_kernel(int4* out, int4* other, int n) {
    extern __shared__ int4 memory[];
    int4* p = n > 3 ? memory : other;
    for (int i = 0; i < n; ++i) __stwb(p + i, int4{1, 2, 3, i});
    __syncthreads();
    out[threadIdx.x] = p[threadIdx.x];
}
extern "C" __global__ void own_kernel(int* out, int n) {
    int own[8];
    for (int i = 0; i < 8; ++i) own[i] = out[i];
    out[threadIdx.x] = __ldcg(own + n);
}
extern "C" __global__ void handed_on_kernel(int** out, int n) {
    __shared__ int shared[64];
    shared[threadIdx.x] = n;
    out[threadIdx.x] = shared + n;
}
extern "C" __global__ void right_kernel(int4* out, int4* other, int n) {
    extern __shared__ int4 memory[];
    int4* p = n > 3 ? memory : other;
    for (int i = 0; i < n; ++i) p[i] = int4{1, 2, 3, i};
    __syncthreads();
    __stwb(out + threadIdx.x, p[threadIdx.x]);
}
"""


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc")
def test_an_address_in_shared_memory_is_followed(tmp_path: Path) -> None:
    """Through a choice, a loop and a store, in what nvcc makes of kernels that are wrong but for the last."""
    (tmp_path / "faults.cu").write_text(FAULTS)
    subprocess.run(["nvcc", "--ptx", "faults.cu"], cwd=tmp_path, check=True)
    ptx = (tmp_path / "faults.ptx").read_text()
    assert "right_kernel" in ptx
    assert {complaint.partition(":")[0] for complaint in misplaced(ptx)} == {
        *("one_block_kernel", "either_kernel", "own_kernel", "handed_on_kernel"),
    }


def test_no_address_in_shared_memory_is_taken_for_one_in_global_memory(module: Path) -> None:
    """As a tile that waits in shared memory would be, if it were stored by what stores to global memory."""
    ptx = launches.cuobjdump("ptx", module)
    assert "cvta.shared" in ptx  # that tile's
    assert misplaced(ptx) == []


def test_the_published_table_is_of_these_kernels(compiled: list[Kernel]) -> None:
    changed = kernels.outdated(kernels.rows(compiled), "nvcc", kernels.nvcc_version())
    if changed is None:
        pytest.skip(f"the committed table of kernels is of another nvcc than {kernels.nvcc_version()}")
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
