"""The native modules: what they need, what else they bring into a process, and how a processor is matched."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

import fastssl
from fastssl import _build
from fastssl.ops import _native

MODULES = [p for p in Path(fastssl.__file__).parent.glob("_c*") if p.suffix in {".so", ".pyd"}]


@pytest.mark.skipif(shutil.which("readelf") is None, reason="needs readelf")
@pytest.mark.parametrize("module", MODULES, ids=lambda p: p.name.split(".")[0])
def test_needs_no_torch_and_no_cuda_library(module: Path) -> None:
    needed = re.findall(r"NEEDED.*\[(.+)\]", subprocess.check_output(["readelf", "-d", module], text=True))
    assert needed
    assert not [name for name in needed if re.search("torch|c10|cudart|cublas", name)], needed


def test_the_modules_are_of_the_sources_here() -> None:
    assert _build.stale() is None, _build.stale()


def test_the_cpu_module_was_built() -> None:
    assert _native.cpu is not None, _native.CPU_MISSING


@pytest.mark.skipif(importlib.util.find_spec("fastssl._cuda") is None, reason="fastssl._cuda was not built")
def test_the_cuda_module_imports_without_a_gpu() -> None:
    assert _native.cuda is not None, _native.CUDA_MISSING
    assert "90" in _native.cuda.architectures


RUNTIMES = """
import re, torch
from fastssl.ops import nt_xent
z = torch.nn.functional.normalize(torch.randn(300, 16), dim=1)
torch.mm(z, z.T), nt_xent(z, z, temperature=0.5, backend="cpu")
mapped = open("/proc/self/maps").read()
print(*sorted(set(re.findall(r"\\S*/(lib(?:gomp|iomp|omp)[^/\\s]*)", mapped))))
print(*sorted(set(re.findall(r"\\S*/lib(?:gomp|iomp|omp)[^/\\s]*", mapped))))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_one_openmp_runtime_serves_torch_and_us() -> None:
    done = subprocess.run([sys.executable, "-c", RUNTIMES], capture_output=True, text=True, check=True)
    names, paths = done.stdout.splitlines()
    assert len(paths.split()) == 1, paths
    assert names


def test_an_instruction_set_the_processor_lacks_is_refused() -> None:
    best = _native.cpu.supported_isa()
    _native.cpu.set_isa("baseline")
    assert _native.cpu.isa() == "baseline"
    _native.cpu.set_isa(best)
    with pytest.raises(
        ValueError, match="unknown instruction set 'mmx': choose baseline, avx2, avx512, avx512bf16 or amx"
    ):
        _native.cpu.set_isa("mmx")
    if best != "amx":
        with pytest.raises(ValueError, match=f"cannot run amx; its best is {best}"):
            _native.cpu.set_isa("amx")


def test_who_shares_work_among_threads_of_his_own_calls_kernels_that_use_one() -> None:
    before, elsewhere = _native.threads(), []
    with _native.on_one_thread():
        assert _native.threads() == 1
        with _native.on_one_thread():
            pass
        assert _native.threads() == 1
        other = threading.Thread(target=lambda: elsewhere.append(_native.threads()))
        other.start()
        other.join()
    assert elsewhere == [torch.get_num_threads()]
    assert _native.threads() == before == torch.get_num_threads()


KEPT = """
import os, torch
from pathlib import Path
from fastssl import ops
from fastssl.ops import _native

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

views = [torch.nn.functional.normalize(torch.randn(4096, 128), dim=1) for _ in range(2)]
with ops.backend("cpu"):
    first = ops.nt_xent(*views, temperature=0.1)
    kept = resident()
    assert ops.nt_xent(*views, temperature=0.1) == first
_native.cpu.release_kept()
print(kept - resident())
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux's account of a process's memory")
def test_working_memory_is_kept_for_the_next_call_until_it_is_released() -> None:
    returning = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}  # what is freed goes back to the system at once
    released = int(subprocess.check_output([sys.executable, "-c", KEPT], text=True, env=returning))
    assert released > 3 << 20  # the rows by depth: 4 MB
