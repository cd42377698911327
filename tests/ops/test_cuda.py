"""The CUDA kernels without a GPU: what nvcc made of them for each GPU generation."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
from pathlib import Path

import pytest

MODULE = importlib.util.find_spec("fastssl._cuda")
SOURCES = sorted((Path(__file__).parent.parent.parent / "csrc" / "cuda").glob("*.cu"))
TRITON = importlib.util.find_spec("triton")


def cuobjdump() -> str | None:
    """CUDA's own, or the one that Triton brings along."""
    if TRITON is None or TRITON.origin is None:
        return shutil.which("cuobjdump")
    return str(Path(TRITON.origin).parent / "backends" / "nvidia" / "bin" / "cuobjdump")


@pytest.mark.skipif(MODULE is None, reason="fastssl._cuda was not built")
@pytest.mark.skipif(cuobjdump() is None, reason="needs cuobjdump")
def test_no_kernel_spills_its_registers() -> None:
    assert MODULE is not None
    assert MODULE.origin is not None
    told = subprocess.check_output([str(cuobjdump()), "--dump-resource-usage", MODULE.origin], text=True)
    kernels = re.findall(r"Function (\S+):\s+REG:\d+ STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", told)
    for source in SOURCES:
        assert any(source.stem in name for name, *_ in kernels), source
    spilled = [(name, stack, local) for name, stack, local in kernels if (stack, local) != ("0", "0")]
    assert not spilled, spilled
