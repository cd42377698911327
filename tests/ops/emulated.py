"""GPU kernels without a GPU, on CPU tensors.

The CUDA kernels' sources are compiled for the emulator of tests/emulated_cuda; the Triton kernels run in Triton's
interpreter, if it was imported under ``TRITON_INTERPRET=1``.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fastssl.ops import _backend, _native

EMULATED, INTERPRETED = "emulated", "interpreted"
INTERPRETING = os.environ.get("TRITON_INTERPRET") == "1"
ROOT = Path(__file__).parent.parent.parent
BUILD = ROOT / "build" / "emulated"
STREAM = 0x57  # the one that the emulator has: tests/emulated_cuda/include/emulator.h


@functools.cache
def module() -> Any:
    """``fastssl._cuda`` as the emulator runs it, built anew where a source has changed.

    .ci/sanitize copies the tests beside a build of its own, without the sources.
    """
    if (ROOT / "CMakeLists.txt").exists():
        _build()
    (built,) = (BUILD / "out").glob("_cuda*.so")
    spec = importlib.util.spec_from_file_location("emulated._cuda", built)
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def _build() -> None:
    import pybind11  # these two are there where a build is, and the GPU's tests need none
    from filelock import FileLock

    BUILD.mkdir(parents=True, exist_ok=True)
    tools = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    configure = ["cmake", "-S", ROOT, "-B", BUILD, "-G", "Ninja", "-DFASTSSL_EMULATE_CUDA=ON"]
    configure += [f"-DPython_EXECUTABLE={sys.executable}", f"-Dpybind11_DIR={pybind11.get_cmake_dir()}"]
    with FileLock(BUILD / "lock"):  # several workers may want it at once
        for command in (configure, ["cmake", "--build", BUILD]):
            done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PATH": tools})
            assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]


def _placed_on_cpu(device: str, *tensors: Tensor) -> str | None:
    """In place of ``_backend._placed``, which asks for tensors on a GPU."""
    return _PLACED("cpu", *tensors)


def _interpretable(device: str, *tensors: Tensor) -> str | None:
    """Likewise; Triton 3.9's interpreter multiplies bfloat16 wrongly, so those tests are for a GPU alone."""
    if any(tensor.dtype == torch.bfloat16 for tensor in tensors):
        pytest.skip("Triton's interpreter has no product of bfloat16")
    return _PLACED("cpu", *tensors)


_PLACED = _backend._placed


class OneStream:
    """The emulator's, in which all is done at once."""

    def wait_event(self, event: object) -> None:
        """It is past."""


class Past:
    """An event of that stream."""

    def record(self, stream: OneStream) -> None:
        """It is past."""


@contextmanager
def cuda_on_cpu() -> Iterator[None]:
    """Inside, the backend ``cuda`` takes CPU tensors and the emulator runs its kernels."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_native, "cuda", module())
        patch.setattr(_native, "stream", lambda tensor: STREAM)
        patch.setattr(_backend, "_placed", _placed_on_cpu)
        patch.setattr(torch.cuda, "device", lambda _: nullcontext())
        patch.setattr(torch.cuda, "current_stream", lambda _=None: OneStream())
        patch.setattr(torch.cuda, "Event", Past)
        patch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor)
        patch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
        patch.setattr(torch.Tensor, "record_stream", lambda tensor, stream: None)
        yield


@contextmanager
def triton_on_cpu() -> Iterator[None]:
    """Inside, the backend ``triton`` takes CPU tensors and the interpreter runs its kernels."""
    assert INTERPRETING, "set TRITON_INTERPRET=1 before Triton is imported"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_backend, "_placed", _interpretable)
        # as of a small GPU: the interpreter takes one program after the other, and what many do one can
        launch = importlib.import_module("fastssl.ops.triton._launch")
        patch.setattr(launch, "gpu", lambda device: launch.Gpu(processors=3))
        # and it takes as long for a small piece of a tile as for a large one
        patch.setattr(importlib.import_module("fastssl.ops.triton._neighbours"), "PIECE", 64)
        yield
