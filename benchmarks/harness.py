"""Timing, memory and error of one op against its rivals, as rows that identify themselves."""

from __future__ import annotations

import datetime
import platform
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

OURS = "fastssl"
SAMPLES, WARM_UP = 25, 3
OPS = tuple(sorted(path.stem for path in (Path(__file__).parent / "ops").glob("[a-z]*.py")))
Work = Callable[[], Any]


@dataclass(frozen=True)
class Case:
    """One shape of one op.

    ``providers`` maps a name to a function that makes the inputs and returns the work to time; the work returns the
    tensors by which its error is judged, and ``exact`` gives the same in float64. ``operations`` and ``bytes_moved``
    are the algorithm's own counts: those that no implementation can do without.
    """

    op: str
    shape: str
    dtype: str
    providers: dict[str, Callable[[], Work]] = field(repr=False)
    exact: Callable[[], tuple[torch.Tensor, ...]] | None = field(default=None, repr=False)
    operations: float = 0.0
    bytes_moved: float = 0.0
    peak: bool = False  # measure the memory too

    @property
    def name(self) -> str:
        return f"{self.op} {self.shape} {self.dtype}"


def cases(only: str | None = None) -> list[Case]:
    """Every case of every op, or of one."""
    return [case for op in OPS if only in (None, op) for case in import_module(f"benchmarks.ops.{op}").cases()]


def interleaved(works: dict[str, Work]) -> dict[str, list[float]]:
    """Seconds of each work, SAMPLES times in turns, so that a noisy moment falls on all alike."""
    for work in works.values():
        for _ in range(WARM_UP):
            work()
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(SAMPLES):
        for name, work in works.items():
            start = time.perf_counter()
            work()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def quantiles(seconds: list[float]) -> dict[str, float]:
    """Median, 20th and 80th percentile in milliseconds."""
    p20, *_, p80 = statistics.quantiles(seconds, n=5)
    return {name: 1e3 * x for name, x in (("median", statistics.median(seconds)), ("p20", p20), ("p80", p80))}


def product_rate() -> float:
    """GFLOP/s of torch's own float32 matrix product here and now: what the timings below can be held against."""
    a = torch.randn(2048, 2048)
    seconds = interleaved({"mm": lambda: a @ a})["mm"]
    return 2 * 2048**3 / statistics.median(seconds) / 1e9


def peak_megabytes(case: Case, provider: str) -> float:
    """What one call adds to the high-water mark of a process of its own, after a first call has set everything up."""
    command = [sys.executable, "-m", "benchmarks.memory", case.op, case.name, provider, str(torch.get_num_threads())]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def error(case: Case, work: Work) -> float | None:
    """The largest relative error (in the norm) of a provider's results against float64."""
    if case.exact is None:
        return None
    pairs = zip(work(), case.exact(), strict=True)
    return max(((got.double() - want).norm() / want.norm()).item() for got, want in pairs)


def measure(case: Case) -> list[dict[str, Any]]:
    """A row for each provider of the case, the best rival's ratio in ours."""
    works = {name: make() for name, make in case.providers.items()}
    timed = {name: quantiles(seconds) for name, seconds in interleaved(works).items()}
    rivals = {name: times["median"] for name, times in timed.items() if name != OURS}
    best = min(rivals, key=rivals.__getitem__)
    rows = []
    for name, times in timed.items():
        row: dict[str, Any] = {"op": case.op, "shape": case.shape, "dtype": case.dtype, "provider": name, "unit": "ms"}
        row |= {key: round(value, 4) for key, value in times.items()}
        row["times_faster_than"] = {rival: round(median / times["median"], 3) for rival, median in rivals.items()}
        row["best_rival"] = best
        if case.operations:
            row["gflops"] = round(case.operations / times["median"] / 1e6, 1)
        if case.bytes_moved:
            row["gigabytes_per_second"] = round(case.bytes_moved / times["median"] / 1e6, 2)
        row["error_against_float64"] = error(case, works[name])
        if case.peak:
            row["peak_extra_megabytes"] = round(peak_megabytes(case, name), 1)
        rows.append(row)
    return rows


def circumstances() -> dict[str, Any]:
    """The machine, the versions, the commit and the date of a run."""
    from fastssl.info import facts

    commit = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False)
    return {
        **{key: value for key, value in facts().items() if key in {"fastssl", "torch", "python", "C++ kernels", "GPU"}},
        "processor": processor(),
        "threads": torch.get_num_threads(),
        "samples": SAMPLES,
        "commit": commit.stdout.strip(),
        "date": datetime.date.today().isoformat(),
    }


def processor() -> str:
    """The processor's name and the threads in use."""
    info = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*:\s*(.+)", info.read_text()) if info.exists() else None
    return f"{found[1] if found else platform.processor()}, {torch.get_num_threads()} threads"
