"""The C++ kernels' exponential is as exact as csrc/cpu/simd.h says, on every instruction set that the processor has."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from isas import ISAS

from fastssl.ops import _native

HERE = Path(__file__).parent
COMPILER = shutil.which("g++")
# as CMakeLists.txt has them; the others share one of these exponentials
FLAGS = {"baseline": "", "avx2": "-mavx2 -mfma", "avx512": "-mavx512f -mavx512bw -mavx512vl -mavx512dq -mfma"}
MOST = {"baseline": (1.4, 1.2), "avx2": (1.1, 1.2), "avx512": (1.1, 1.2)}  # of float and of double


@pytest.mark.skipif(COMPILER is None, reason="needs g++")
@pytest.mark.skipif(not (HERE.parent.parent / "csrc").exists(), reason="needs the sources")
@pytest.mark.parametrize("isa", FLAGS)
def test_the_exponential_is_within_its_bound(isa: str, tmp_path: Path) -> None:
    if ISAS.index(isa) > ISAS.index(_native.cpu.supported_isa()):
        pytest.skip(f"this processor cannot run {isa}")
    command = [str(COMPILER), "-std=c++17", "-O2", *FLAGS[isa].split(), "-ffp-contract=fast", "-fno-math-errno"]
    subprocess.run([*command, HERE / "exp_error.cpp", "-o", tmp_path / "exp_error"], check=True)
    found = [float(line) for line in subprocess.check_output([tmp_path / "exp_error"], text=True).split()]
    assert all(error <= most for error, most in zip(found, MOST[isa], strict=True)), found
    assert min(found) > 0.5  # no function is exact: something was measured
