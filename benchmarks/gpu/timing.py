"""A case on a GPU: what one call costs on the device, and from Python to the end; its memory.

A call's time on the device is that of CUDA graphs in which calls follow one another without a gap, each on buffers
that the last ones' have driven out of the L2 cache. What cannot be captured (a rival that waits for the device) is
timed call by call between two events, the cache emptied before.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from benchmarks import harness, where
from benchmarks.gpu.floors import GpuFloors, captured, seconds_of
from benchmarks.harness import AGAIN, OURS, SAMPLES, Case, Work

GRAPH_SECONDS = 0.005  # of calls in one graph, about
MOST_COPIES, MOST_CALLS = 64, 256
MEGA = 2**20


def measure(
    case: Case, floors: GpuFloors | None, progress: Callable[[str], None] = lambda _: None
) -> list[dict[str, Any]]:
    """A row for each provider, one after the other: a GPU's memory would not hold them all."""
    where.forget_compiled()
    progress("float64")
    exact = harness.exactly(case)
    rows: dict[str, dict[str, Any]] = {}
    failed: dict[str, str] = {}
    for name in case.providers:
        progress(name)
        try:
            rows[name] = measured(case, name, floors, exact)
        except Exception as reason:  # whatever a rival raises belongs in its row
            if name == OURS:
                raise
            failed[name] = harness.why(reason)
        gc.collect()
        torch.cuda.empty_cache()
    return harness.compared(case, rows, failed)


def measured(case: Case, name: str, floors: GpuFloors | None, exact: tuple[torch.Tensor, ...] | None) -> dict[str, Any]:
    """One provider's row: ``median`` is of the device, ``wall`` of a call that is waited for."""
    before = torch.cuda.memory_allocated()
    work = harness.warm(case.providers[name])
    megabytes = (torch.cuda.memory_allocated() - before) / MEGA
    wall = harness.interleaved({name: work})[name]
    peak = peak_megabytes(work)
    deviation = None if name.endswith(AGAIN) else harness.error(work, exact)
    copies = copies_of(case.providers[name], work, megabytes)
    seconds, how = on_device(copies, min(wall))
    row = harness.row(case, name, work, seconds, floors)
    row |= {f"wall_{key}": value for key, value in harness.quantiles(wall).items()}
    row |= {"timed_by": how, "input_megabytes": round(megabytes * len(copies), 1), "peak_extra_megabytes": peak}
    return row | {"error_against_float64": deviation}


def copies_of(make: Callable[[], Work], work: Work, megabytes: float) -> list[Work]:
    """The same work on inputs of its own each, together twice the L2 cache, if that takes no more than MOST_COPIES."""
    wanted = 2 * l2_bytes() / MEGA / max(megabytes, 1e-3)
    copies = [work]
    with where.made_there():
        copies += [make() for _ in range(min(math.ceil(wanted), MOST_COPIES) - 1)]
    return copies


def l2_bytes() -> int:
    return int(torch.cuda.get_device_properties(torch.cuda.current_device()).L2_cache_size)


def peak_megabytes(work: Work) -> float:
    """What one call takes of the allocator above what was there before, after calls that set everything up."""
    work()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    work()
    torch.cuda.synchronize()
    return round((torch.cuda.max_memory_allocated() - before) / MEGA, 1)


def on_device(copies: list[Work], wall: float) -> tuple[list[float], str]:
    """Seconds of a call on the device, SAMPLES times, and by what they were measured."""
    reason = waits(copies[0])
    if reason is None:
        try:
            return by_graph(copies, wall), "graph"
        except RuntimeError as error:
            reason = harness.why(error)
    return by_events(copies), f"events, for a graph cannot hold it: {reason}"


def waits(work: Work) -> str | None:
    """Why a call cannot be captured: it waits for the device. Asked before, for a capture that failed leaves traces."""
    try:
        with no_waiting():
            work()
    except RuntimeError as error:
        return harness.why(error)
    return None


@contextmanager
def no_waiting() -> Iterator[None]:
    """Inside, torch raises where it would wait for the device."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def by_graph(copies: list[Work], wall: float) -> list[float]:
    """Each sample is one replay of a graph of some calls of every copy, over their number."""
    calls = max(1, min(MOST_CALLS, round(GRAPH_SECONDS / max(wall, 1e-6))))
    rounds = max(1, round(calls / len(copies)))

    def calls_of_all() -> None:
        for work in copies * rounds:
            work()

    graph = captured(calls_of_all)
    return [seconds_of(graph.replay) / (rounds * len(copies)) for _ in range(SAMPLES)]


def by_events(copies: list[Work]) -> list[float]:
    """Each sample is one call between two events, in a queue that is busy until Python has launched most of it."""
    flush = torch.empty(4 * l2_bytes(), dtype=torch.int8, device=where.device())
    return [seconds_of(copies[i % len(copies)], flush.zero_) for i in range(SAMPLES)]
