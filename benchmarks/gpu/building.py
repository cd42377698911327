"""The check's build: this checkout into this very environment, or of a dry run a wheel without CUDA."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import time
import zipfile
from pathlib import Path

import torch

from benchmarks.gpu import processes
from benchmarks.gpu.processes import ROOT, Result, Tell
from fastssl import _build


def build(parts: list[str], seconds: float, tell: Tell, dry: bool) -> None:
    """Into this very environment, as an editable checkout, since what is tested and measured is this checkout.

    Where the environment refuses, that is the part's failure, and the modules are built alone for the stages to come.
    """
    if dry:
        build_wheel(seconds, tell)
        return
    environment = {"FASTSSL_CUDA": os.environ.get("FASTSSL_CUDA", "1")}
    if "TORCH_CUDA_ARCH_LIST" not in os.environ and "CUDAARCHS" not in os.environ:
        environment["TORCH_CUDA_ARCH_LIST"] = "{}.{}".format(*torch.cuda.get_device_capability())  # this one alone
    for old in ROOT.glob("fastssl/_*.so"):
        old.unlink()  # this process may have loaded it, and a file that is written over would end it
    start = time.monotonic()
    code, said = processes.run([*pip("install"), "--editable", "."], seconds, **environment)
    if code is None:
        return
    result: Result = {} if code == 0 else {"failed": said}
    if code != 0 and not module_is_there():
        result["modules alone"] = modules_alone(start + seconds - time.monotonic(), environment)
    told = "from fastssl import info; print(info.facts()['CUDA kernels'])"
    result["cuda"] = processes.run([sys.executable, "-c", told], 60)[1].splitlines()[-1]
    if not module_is_there():
        result.setdefault("failed", "fastssl._cuda was not built")
    tell("build", {**result, "seconds": round(time.monotonic() - start, 1)})


def pip(command: str) -> list[object]:
    """pip as the build calls it: with what is installed here, and nothing else."""
    return [sys.executable, "-m", "pip", command, "--no-build-isolation", "--no-deps", "--disable-pip-version-check"]


def build_wheel(seconds: float, tell: Tell) -> None:
    """A dry run's build: the same one without the CUDA kernels, into a wheel; what is installed stays as it is."""
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="fastssl-wheel-") as folder:
        command = [*pip("wheel"), "--no-index", "--wheel-dir", folder, "."]
        code, said = processes.run(command, seconds, FASTSSL_CUDA="0")
        if code is None:
            return
        modules = [name for wheel in Path(folder).glob("*.whl") for name in zipfile.ZipFile(wheel).namelist()]
    built = [Path(name).name.partition(".")[0] for name in modules if name.endswith(".so")]
    result: Result = {"wheel with": built} if code == 0 and built else {"failed": said}
    tell("build", {**result, "seconds": round(time.monotonic() - start, 1)})


def modules_alone(seconds: float, environment: dict[str, str]) -> str:
    """Builds the native modules that can be into the checkout, by CMake itself; what came of it."""
    folder, deadline = ROOT / "build" / "modules", time.monotonic() + seconds
    shutil.rmtree(folder / "out", ignore_errors=True)  # what is not built any more would stay there
    pybind11 = processes.run([sys.executable, "-m", "pybind11", "--cmakedir"], seconds)[1]
    configure: list[object] = ["cmake", "-S", ROOT, "-B", folder, "-G", "Ninja", f"-Dpybind11_DIR={pybind11}"]
    configure += [f"-DPython_EXECUTABLE={sys.executable}", f"-DFASTSSL_OUT={folder / 'out'}", "-DFASTSSL_CUDA=auto"]
    for command in (configure, ["cmake", "--build", folder]):
        code, said = processes.run(command, deadline - time.monotonic(), **environment)
        if code != 0:
            return f"failed: {said}"
    _build.keep(folder / "out", ROOT / "fastssl", ROOT)
    return "built"


def module_is_there() -> bool:
    """Whether the CUDA kernels are built, of the sources as they are now."""
    return any(ROOT.glob("fastssl/_cuda*.so")) and _build.stale(ROOT) is None
