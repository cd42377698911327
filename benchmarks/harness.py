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

from benchmarks.rivals import versions

OURS = "fastssl"
SAMPLES, WARM_UP = 25, 3
# A slow provider leaves the turns when it has used BUDGET seconds and has FEWEST samples; one warm-up must then do.
BUDGET, FEWEST = 10.0, 5
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
    """Seconds of each work in turns, so that a noisy moment falls on all alike; slow ones have fewer samples."""
    for work in works.values():
        start = time.perf_counter()
        for _ in range(WARM_UP):
            work()
            if time.perf_counter() - start > BUDGET / SAMPLES:
                break
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(SAMPLES):
        for name, taken in seconds.items():
            if len(taken) >= FEWEST and sum(taken) > BUDGET:
                continue
            start = time.perf_counter()
            works[name]()
            taken.append(time.perf_counter() - start)
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
    """The largest relative error (in the norm) of a provider's results against float64.

    A provider that returns only the first results (a loss whose gradient is another one) is judged by those.
    """
    if case.exact is None:
        return None
    pairs = zip(work(), case.exact(), strict=False)
    return max(((got.double() - want).norm() / want.norm()).item() for got, want in pairs)


def made(case: Case) -> tuple[dict[str, Work], dict[str, str]]:
    """The works of the case's providers, each called once, and why others cannot: rivals that are missing or fail."""
    works, failed = {}, {}
    for name, make in case.providers.items():
        try:
            work = make()
            work()
            works[name] = work
        except Exception as reason:  # whatever a rival raises belongs in its row
            if name == OURS:
                raise
            failed[name] = f"{type(reason).__name__}: {str(reason).strip().partition(chr(10))[0]}"
    return works, failed


def measure(case: Case) -> list[dict[str, Any]]:
    """A row for each provider of the case, the best rival's ratio in ours; one that failed has the reason instead."""
    works, failed = made(case)
    timed = interleaved(works)
    medians = {name: 1e3 * statistics.median(seconds) for name, seconds in timed.items()}
    rivals = {name: median for name, median in medians.items() if name != OURS}
    best = min(rivals, key=rivals.__getitem__, default=None)
    rows = []
    for name in case.providers:
        row: dict[str, Any] = {"op": case.op, "shape": case.shape, "dtype": case.dtype, "provider": name}
        rows.append(row)
        if name in failed:
            row["failed"] = failed[name]
            continue
        row |= {"unit": "ms", **{key: round(value, 4) for key, value in quantiles(timed[name]).items()}}
        row["samples"] = len(timed[name])
        row["times_faster_than"] = {rival: round(median / medians[name], 3) for rival, median in rivals.items()}
        row["best_rival"] = best
        if case.operations:
            row["gflops"] = round(case.operations / medians[name] / 1e6, 1)
        if case.bytes_moved:
            row["gigabytes_per_second"] = round(case.bytes_moved / medians[name] / 1e6, 2)
        row["error_against_float64"] = error(case, works[name])
        if case.peak:
            row["peak_extra_megabytes"] = round(peak_megabytes(case, name), 1)
    return rows


def circumstances() -> dict[str, Any]:
    """The machine, the versions, the commit and the date of a run."""
    from fastssl.info import facts

    commit = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False)
    return {
        **{key: value for key, value in facts().items() if key in {"fastssl", "torch", "python", "C++ kernels", "GPU"}},
        "processor": processor(),
        "threads": torch.get_num_threads(),
        "samples": f"{SAMPLES}, fewer of works over {1e3 * BUDGET / SAMPLES:.0f} ms, at least {FEWEST}",
        "rivals": versions(),
        "commit": commit.stdout.strip(),
        "date": datetime.date.today().isoformat(),
    }


def processor() -> str:
    """The processor's name and the threads in use."""
    info = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*:\s*(.+)", info.read_text()) if info.exists() else None
    return f"{found[1] if found else platform.processor()}, {torch.get_num_threads()} threads"
