"""Timing, memory and error of one op against its rivals, as rows that identify themselves."""

from __future__ import annotations

import datetime
import platform
import re
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from benchmarks import allocator, where
from benchmarks.floors import Floors
from benchmarks.rivals import versions
from fastssl.ops import explain

OURS = "fastssl"
AGAIN = " again"  # ends the name of a provider that is timed twice, to show the spread of a run
SAMPLES, WARM_UP = 20, 3
# A slow work leaves the turns when it has used BUDGET seconds and has FEWEST samples; one warm-up must do for it.
BUDGET, FEWEST = 8.0, 5


def _files(folder: str) -> tuple[str, ...]:
    return tuple(sorted(path.stem for path in (Path(__file__).parent / folder).glob("[a-z]*.py")))


OPS = _files("ops")
DATA = _files("data")  # from files to views
MODELS = _files("models")  # encoders, forward and backward
WHOLE = _files("whole")  # libraries whose users' losses are measured as they call them
Work = Callable[[], Any]


@dataclass(frozen=True)
class Case:
    """One shape of one op.

    ``providers`` maps a name to a function that makes the inputs and returns the work to time; the work returns the
    tensors by which its error is judged, and ``exact`` gives the same in float64. ``operations``, ``bytes_moved`` and
    ``exponentials`` are the algorithm's own counts, those that no implementation can do without: the floor is their
    time. ``recompute`` are the operations that ours does besides, to store less.
    """

    op: str
    shape: str
    dtype: str
    providers: dict[str, Callable[[], Work]] = field(repr=False)
    exact: Callable[[], tuple[torch.Tensor, ...]] | None = field(default=None, repr=False)
    operations: float = 0.0
    bytes_moved: float = 0.0
    exponentials: float = 0.0
    recompute: float = 0.0
    peak: bool = False  # measure the memory too

    @property
    def name(self) -> str:
        return f"{self.op} {self.shape} {self.dtype}"


def cases(only: str | None = None) -> list[Case]:
    """Every case of every op, way of loading, encoder and library, or of one, with the sizes for the device in use."""
    folders = {"ops": OPS, "data": DATA, "models": MODELS, "whole": WHOLE}
    modules = {name: f"benchmarks.{folder}.{name}" for folder, names in folders.items() for name in names}
    found = [case for name in modules if only in (None, name) for case in import_module(modules[name]).cases()]
    return [replace(case, providers=where.with_autotuned(case.providers)) for case in found]


def timed(work: Work) -> float:
    """Seconds of one call, to the end of what it started on a GPU."""
    start = time.perf_counter()
    work()
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def made(case: Case, only: Iterable[str] | None = None) -> tuple[dict[str, Work], dict[str, str]]:
    """The works of the case's providers, warmed up, and why others cannot: rivals that are missing or fail."""
    where.forget_compiled()
    works, failed = {}, {}
    for name in case.providers if only is None else only:
        try:
            works[name] = warm(case.providers[name])
        except Exception as reason:  # whatever a rival raises belongs in its row
            if name == OURS:
                raise
            failed[name] = why(reason)
    return works, failed


def warm(make: Callable[[], Work]) -> Work:
    """A provider's work, called a few times."""
    with where.made_there():
        work = make()
    for _ in range(WARM_UP):
        if timed(work) > BUDGET / SAMPLES:
            break
    return work


def why(reason: Exception) -> str:
    """One line of an exception."""
    return f"{type(reason).__name__}: {str(reason).strip().partition(chr(10))[0]}"


def interleaved(works: dict[str, Work]) -> dict[str, list[float]]:
    """Seconds of each work in turns, so that a noisy moment falls on all alike; slow ones have fewer samples."""
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(SAMPLES):
        for name, taken in seconds.items():
            if len(taken) < FEWEST or sum(taken) < BUDGET:
                taken.append(timed(works[name]))
    return seconds


def quantiles(seconds: list[float]) -> dict[str, float]:
    """Median, 20th and 80th percentile in milliseconds."""
    p20, *_, p80 = statistics.quantiles(seconds, n=5)
    return {name: round(1e3 * x, 6) for name, x in (("median", statistics.median(seconds)), ("p20", p20), ("p80", p80))}


def peak_megabytes(case: Case, provider: str) -> float:
    """What one call adds to the high-water mark of a process of its own, after a first call has set everything up."""
    command = [sys.executable, "-m", "benchmarks.memory", case.op, case.name, provider, str(torch.get_num_threads())]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return round(float(done.stdout.split()[-1]), 1)


def errors(case: Case, works: dict[str, Work]) -> dict[str, float | None]:
    """The largest relative error (in the norm) of each provider's results against float64.

    A provider that returns only the first results (a loss whose gradient is another one) is judged by those.
    """
    exact = exactly(case)
    return {name: error(work, exact) for name, work in works.items()}


def exactly(case: Case) -> tuple[torch.Tensor, ...] | None:
    """The results in float64, where a case can tell them."""
    with where.made_there():
        return case.exact() if case.exact is not None else None


def error(work: Work, exact: tuple[torch.Tensor, ...] | None) -> float | None:
    if exact is None:
        return None
    return max(((got.double() - want).norm() / want.norm()).item() for got, want in zip(work(), exact, strict=False))


def backend(work: Work) -> str:
    """The backend that serves the first op of ours in ``work``, without computing it; "torch" if it calls none.

    Work whose ops are called by threads of its own has a ``first_op`` that calls one like it; work that is done in
    another process tells its ``backend``.
    """
    if hasattr(work, "backend"):
        return str(work.backend)
    try:
        return explain(getattr(work, "first_op", work)).partition(": ")[2].partition(" ")[0]
    except TypeError:  # MAE's loss, whose few numbers need none
        return "torch"


def rates(case: Case, provider: str, median: float, floors: Floors | None) -> dict[str, Any]:
    """What a median in milliseconds means for the counts of the case."""
    found: dict[str, Any] = {}
    if case.operations:
        found["gflops"] = round(case.operations / median / 1e6, 1)
    if case.bytes_moved:
        found["gigabytes_per_second"] = round(case.bytes_moved / median / 1e6, 2)
    if floors is not None and (case.operations or case.bytes_moved or case.exponentials):
        floor = 1e3 * floors.seconds(case.operations, case.bytes_moved, case.exponentials, case.dtype)
        found |= {"floor": round(floor, 6), "percent_of_floor": round(100 * floor / median, 1)}
    if case.recompute and provider == OURS:
        gflops = (case.operations + case.recompute) / median / 1e6
        found["gflops_with_recompute"] = round(gflops, 1)
        if floors is not None:
            found["percent_of_peak"] = round(100 * gflops / floors.peak(case.dtype), 1)
    return found


def row(case: Case, provider: str, work: Work, seconds: list[float], floors: Floors | None) -> dict[str, Any]:
    """What one provider's times say by themselves."""
    found: dict[str, Any] = {
        "op": case.op,
        "shape": case.shape,
        "dtype": case.dtype,
        "provider": provider,
        "device": where.device().type,
    }
    found |= {"backend": backend(work) if provider == OURS else None, "unit": "ms", **quantiles(seconds)}
    found["samples"] = len(seconds)
    return found | rates(case, provider, found["median"], floors)


def measure(
    case: Case, floors: Floors | None, progress: Callable[[str], None] = lambda _: None
) -> list[dict[str, Any]]:
    """A row for each provider of the case; one that failed has the reason instead of a time."""
    progress("making and compiling")
    works, failed = made(case)
    progress("timing")
    times = interleaved(works)
    progress("float64")
    deviations = errors(case, works)
    allocator.return_freed_memory()
    rows = {name: row(case, name, work, times[name], floors) for name, work in works.items()}
    for name, found in rows.items():
        found["error_against_float64"] = deviations[name]
        if case.peak and not name.endswith(AGAIN):
            progress(f"memory of {name}")
            found["peak_extra_megabytes"] = peak_megabytes(case, name)
    return compared(case, rows, failed)


def is_ours(provider: str) -> bool:
    """Ours, or ours with other settings: "fastssl, streamed" is nobody's rival."""
    return provider == OURS or provider.startswith(f"{OURS}, ")


def compared(case: Case, rows: dict[str, dict[str, Any]], failed: dict[str, str]) -> list[dict[str, Any]]:
    """The rows in the case's order, each told how it stands to the others, and those of rivals that failed."""
    medians = {name: found["median"] for name, found in rows.items()}
    rivals = {name: median for name, median in medians.items() if name != OURS}
    distinct = [name for name in rivals if not name.endswith(AGAIN) and not is_ours(name)]
    for name, found in rows.items():
        found["times_faster_than"] = {rival: round(median / medians[name], 3) for rival, median in rivals.items()}
        found["best_rival"] = min(distinct, key=rivals.__getitem__, default=None)
    for name, reason in failed.items():
        rows[name] = {"op": case.op, "shape": case.shape, "dtype": case.dtype, "provider": name, "failed": reason}
    return [rows[name] for name in case.providers]


def circumstances() -> dict[str, Any]:
    """The machine, the versions, the commit and the date of a run."""
    from fastssl.info import facts

    shown = {"fastssl", "torch", "python", "GPU", "CUDA kernels" if where.on_gpu() else "C++ kernels"}
    return {
        **({"machine": torch.cuda.get_device_name()} if where.on_gpu() else {}),
        **{key: value for key, value in facts().items() if key in shown},
        "processor": processor(),
        "threads": torch.get_num_threads(),
        "samples": f"{SAMPLES}, fewer of works over {1e3 * BUDGET / SAMPLES:.0f} ms, at least {FEWEST}",
        "rivals": versions(),
        "commit": commit(),
        "date": datetime.date.today().isoformat(),
    }


def circumstances_of_training() -> dict[str, Any]:
    """Those of a run that trains: it has no rivals to load, and no samples."""
    return {name: value for name, value in circumstances().items() if name not in ("rivals", "samples")}


def commit() -> str:
    """The commit of this checkout, or nothing where git or its history is missing; "-dirty" if anything but results and
    the pages made of them has changed since: a run writes those of one op before the next is measured."""
    if shutil.which("git") is None:
        return ""

    def told(*words: str) -> str:
        return subprocess.run(["git", *words], capture_output=True, text=True, check=False).stdout.strip()

    changed = told("status", "--porcelain", "--untracked-files=no", "--", ":/", ":/!benchmarks/results", ":/!docs")
    return told("describe", "--always") + ("-dirty" if changed else "")


def processor() -> str:
    """The processor's name and the threads in use."""
    info = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*:\s*(.+)", info.read_text()) if info.exists() else None
    return f"{found[1] if found else platform.processor()}, {torch.get_num_threads()} threads"
