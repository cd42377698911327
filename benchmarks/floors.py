"""The least time that this machine could need for a count of operations, bytes and exponentials, measured here and now.

``floors.cpp`` is compiled for this very processor and loaded by ctypes; torch's matrix product and exp are timed
beside it.
"""

from __future__ import annotations

import ctypes
import math
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from fastssl.ops import _native

SOURCE = Path(__file__).parent / "floors.cpp"
FLAGS = "-std=c++17 -O3 -march=native -ffp-contract=fast -fno-math-errno -fno-trapping-math -Wno-psabi -fopenmp"
COMPILERS = ("c++", "g++", "clang++")
SECONDS = 0.2  # of each measurement
MEGABYTES = (0.25, 1, 4, 16, 64, 256, 1024)  # memory walked over for the bandwidths: from one cache to no cache
GIGA, MEGA = 1e9, 2**20
PRODUCTS = 6  # of bfloat16 that hold the accuracy of one of float32 (csrc/cpu/matrix_unit.h)


class NoFloorsError(RuntimeError):
    """Why the floors cannot be measured here."""


@dataclass(frozen=True)
class Floors:
    """Rates of all threads together; ``bandwidths`` has, for each size of memory in MB, GB/s of each way to walk it."""

    fma_gflops: float
    bfloat16_gflops: float  # multiply-adds of bfloat16 summed in float32; float32's where those are the faster
    gemm_gflops: float
    exp_billions_per_second: float
    torch_exp_billions_per_second: float
    bandwidths: dict[float, dict[str, float]]

    def bandwidth(self, bytes_moved: float) -> float:
        """The best GB/s of any way to walk over about as many bytes: a small case may stay in a cache."""
        nearest = min(self.bandwidths, key=lambda size: abs(math.log(size * MEGA / bytes_moved)))
        return max(self.bandwidths[nearest].values())

    def peak(self, dtype: str) -> float:
        """GFLOP/s of multiply-adds of inputs of ``dtype``; of float32 in parts, where a matrix unit is faster so."""
        if dtype == "float32":
            return max(self.fma_gflops, self.bfloat16_gflops / PRODUCTS)
        return self.bfloat16_gflops if dtype == "bfloat16" else self.fma_gflops

    def seconds(self, operations: float, bytes_moved: float, exponentials: float, dtype: str = "float32") -> float:
        """The larger of two times: of the bytes, and of the operations and exponentials, which share the same units."""
        exp_rate = max(self.exp_billions_per_second, self.torch_exp_billions_per_second)
        arithmetic = operations / self.peak(dtype) + exponentials / exp_rate
        moving = bytes_moved / self.bandwidth(bytes_moved) if bytes_moved else 0.0
        return max(arithmetic, moving) / GIGA

    def report(self) -> dict[str, Any]:
        return asdict(self)


def library(folder: Path) -> ctypes.CDLL:
    """``floors.cpp`` as a library in ``folder``.

    Raises:
        NoFloorsError: where there is no compiler, or it fails.
    """
    found = [path for name in (os.environ.get("CXX", ""), *COMPILERS) if name and (path := shutil.which(name))]
    if not found:
        raise NoFloorsError(f"no C++ compiler: put one of {', '.join(COMPILERS)} on PATH, or name it in CXX")
    built = folder / "floors.so"
    command = [found[0], *FLAGS.split(), "-DFASTSSL_ISA=native", "-shared", "-fPIC", str(SOURCE), "-o", str(built)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise NoFloorsError(f"{found[0]} failed: {done.stderr.strip().splitlines()[0]}")
    return ctypes.CDLL(str(built))


def best_rate(work: float, run: Callable[[], Any]) -> float:
    """Giga-units of ``work`` a second in the fastest of the calls that fit into SECONDS."""
    run()
    fastest, end = math.inf, time.perf_counter() + SECONDS
    while time.perf_counter() < end:
        start = time.perf_counter()
        run()
        fastest = min(fastest, time.perf_counter() - start)
    return work / fastest / GIGA


def torch_rates() -> tuple[float, float]:
    """GFLOP/s of torch's float32 matrix product and billions a second of its exp, at sizes that suit both."""
    a, b = torch.randn(2048, 2048), torch.empty(2048, 2048)
    x = -20 * torch.rand(2**18)
    y = torch.empty_like(x)
    product = best_rate(2 * 2048**3, lambda: torch.mm(a, a, out=b))
    return product, best_rate(len(x), lambda: torch.exp(x, out=y))


def measured(threads: int) -> Floors:
    """All floors of this machine on ``threads`` threads, in a few seconds.

    Raises:
        NoFloorsError: where there is no compiler, or it fails.
    """
    with tempfile.TemporaryDirectory(prefix="fastssl-floors-") as folder:
        native = library(Path(folder))

    def rate(name: str, *arguments: Any) -> float:
        function = getattr(native, name)
        function.restype = ctypes.c_double
        return round(function(*arguments, threads, ctypes.c_double(SECONDS)) / GIGA, 2)

    bandwidths = {}
    for size in MEGABYTES:
        memory = torch.ones(int(size * MEGA) // 4)
        where = (ctypes.c_void_p(memory.data_ptr()), ctypes.c_int64(memory.nbytes))
        bandwidths[size] = {way: rate(f"{way}_rate", *where) for way in ("copy", "update", "read")}
    gemm, torch_exp = torch_rates()
    return Floors(
        fma_gflops=rate("fma_rate"),
        bfloat16_gflops=rate("bfloat16_rate", ctypes.c_int(_native.cpu is not None and _native.cpu.isa() == "amx")),
        gemm_gflops=round(gemm, 2),
        exp_billions_per_second=rate("exp_rate"),
        torch_exp_billions_per_second=round(torch_exp, 2),
        bandwidths=bandwidths,
    )
