"""The least time that this GPU could need for a count of operations, bytes and exponentials, measured here and now."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from typing import Any

import torch

from benchmarks import where

MEGABYTES = (1, 4, 16, 64, 256, 1024, 4096)  # copied, read and written together: from the L2 cache to the memory
SIDE = 8192  # of the matrices that are multiplied
REPEATS = 10
GIGA, MEGA = 1e9, 2**20


@dataclass(frozen=True)
class GpuFloors:
    """Rates of the whole GPU: torch's products of float32 at its accuracy and of bfloat16, and the rest.

    ``fma_gflops`` is the better of torch's float32 product and a third of its tf32 one, since three tf32 products have
    float32's accuracy.
    """

    fma_gflops: float
    tf32_gflops: float
    gemm_gflops: float
    exp_billions_per_second: float | None
    bandwidths: dict[float, dict[str, float]]

    def bandwidth(self, bytes_moved: float) -> float:
        """GB/s of a copy that moves about as many bytes: a small case may stay in the cache."""
        nearest = min(self.bandwidths, key=lambda size: abs(math.log(size * MEGA / bytes_moved)))
        return max(self.bandwidths[nearest].values())

    def peak(self, dtype: str) -> float:
        """GFLOP/s of products of inputs of ``dtype``."""
        return self.gemm_gflops if dtype.startswith(("bfloat16", "float16")) else self.fma_gflops

    def seconds(self, operations: float, bytes_moved: float, exponentials: float, dtype: str = "float32") -> float:
        """The largest of three times, for different units of a GPU do each of them."""
        moving = bytes_moved / self.bandwidth(bytes_moved) if bytes_moved else 0.0
        exp = exponentials / self.exp_billions_per_second if self.exp_billions_per_second else 0.0
        return max(operations / self.peak(dtype), moving, exp) / GIGA

    def report(self) -> dict[str, Any]:
        return {**asdict(self), "sentence": self.sentence()}

    def sentence(self) -> str:
        ways = ", ".join(f"{size} MB: {max(way.values()):.0f}" for size, way in self.bandwidths.items())
        exp = f"{self.exp_billions_per_second:.0f}" if self.exp_billions_per_second else "an unknown number of"
        return (
            f"{self.gemm_gflops:.0f} GFLOP/s in torch's products of bfloat16, {self.fma_gflops:.0f} of float32 "
            f"({self.tf32_gflops:.0f} by tf32); {exp} billion exp/s; GB/s of a copy over {ways}"
        )


def seconds_of(work: Callable[[], Any], before: Callable[[], Any] = lambda: None) -> float:
    """Between two events around what ``work`` puts into the queue."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    before()
    start.record()
    work()
    end.record()
    torch.cuda.synchronize()
    return float(start.elapsed_time(end)) / 1e3


def captured(work: Callable[[], Any]) -> torch.cuda.CUDAGraph:
    """A CUDA graph of what ``work`` does, after one call on a stream of its own that sets everything up."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        work()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    graph.replay()  # uploads it
    return graph


def rate(work: float, run: Callable[[], Any], calls: int = 5) -> float:
    """Giga-units of ``work`` a second, of which each call of ``run`` does as much; the median of REPEATS."""

    def several() -> None:
        for _ in range(calls):
            run()

    replay = captured(several).replay
    return calls * work / statistics.median(seconds_of(replay) for _ in range(REPEATS)) / GIGA


def product(dtype: torch.dtype, side: int, tf32: bool = False) -> float:
    """GFLOP/s of a square product of random numbers."""
    before = torch.backends.cuda.matmul.allow_tf32
    a, b = (torch.randn(side, side, generator=where.generator(), device=where.device()).to(dtype) for _ in range(2))
    out = torch.empty_like(a)
    try:
        torch.backends.cuda.matmul.allow_tf32 = tf32
        return rate(2.0 * side**3, lambda: torch.mm(a, b, out=out))
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def copy(megabytes: float) -> float:
    """GB/s, of which half is read and half is written."""
    x = torch.ones(int(megabytes * MEGA) // 8, device=where.device())
    y = torch.empty_like(x)
    return rate(2.0 * x.nbytes, lambda: y.copy_(x), calls=20)


def exponentials() -> float | None:
    """Billions a second in registers, as Triton's kernels compute them; None without Triton."""
    if find_spec("triton") is None or where.device().type != "cuda":
        return None
    from benchmarks.gpu import exponential

    return exponential.rate()


def short(rate: float) -> float:
    """Four digits: never zero, however slow or disturbed the machine."""
    return float(f"{rate:.4g}")


def measured(side: int = SIDE, megabytes: tuple[float, ...] = MEGABYTES) -> GpuFloors:
    """All floors of the GPU in use, in a few seconds."""
    tf32 = product(torch.float32, side, tf32=True)
    exp = exponentials()
    return GpuFloors(
        fma_gflops=short(max(product(torch.float32, side), tf32 / 3)),
        tf32_gflops=short(tf32),
        gemm_gflops=short(product(torch.bfloat16, side)),
        exp_billions_per_second=None if exp is None else short(exp),
        bandwidths={size: {"copy": short(copy(size))} for size in megabytes},
    )
