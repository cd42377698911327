"""How a case is timed on a GPU, with a pretended one: the rows, rivals that wait or fail, the floors."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from benchmarks import where
from benchmarks.gpu import floors, pretend, timing
from benchmarks.harness import OURS, Case, Work
from fastssl import ops

FLOORS = floors.GpuFloors(
    fma_gflops=100.0,
    tf32_gflops=300.0,
    gemm_gflops=1000.0,
    exp_billions_per_second=2.0,
    bandwidths={1: {"copy": 200.0}, 256: {"copy": 10.0}},
)


@pytest.fixture(autouse=True)
def _pretended() -> Iterator[None]:
    with pretend.gpu():
        yield


_strict: list[str] = []  # not empty while torch is to raise where it would wait


def ours() -> Work:
    z = torch.eye(8, 4)
    return lambda: (ops.nt_xent(z, z, temperature=1.0),)


def half() -> Work:
    return lambda: (torch.tensor(0.5),)


def waits() -> Work:
    def work() -> tuple[torch.Tensor]:
        if _strict:
            raise RuntimeError("called a synchronizing CUDA operation")
        return (torch.tensor(1.0),)

    return work


def out_of_memory() -> Work:
    raise torch.cuda.OutOfMemoryError("CUDA out of memory\nand more")


def test_a_row_has_the_time_on_the_device_and_from_python(monkeypatch: pytest.MonkeyPatch) -> None:
    def set_mode(mode: str) -> None:
        _strict[:] = [mode] if mode == "error" else []

    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", set_mode)
    providers = {OURS: ours, "half": half, "waits": waits, "large": out_of_memory}
    case = Case("nt_xent", "n=8", "float32", providers, lambda: (torch.tensor(1.0).double(),), operations=3e6)
    rows = {row["provider"]: row for row in timing.measure(case, FLOORS)}
    assert list(rows) == list(providers)
    row = rows[OURS]
    assert row["timed_by"] == "graph"
    assert row["backend"] == "cpu"
    assert {"median", "p20", "p80", "wall_median", "wall_p20", "peak_extra_megabytes", "gflops", "floor"} <= row.keys()
    assert row["best_rival"] in ("half", "waits")
    assert rows["half"]["error_against_float64"] == 0.5
    said = "events, for a graph cannot hold it: RuntimeError: called a synchronizing CUDA operation"
    assert rows["waits"]["timed_by"] == said
    assert rows["large"]["failed"] == "OutOfMemoryError: CUDA out of memory"


def test_a_failure_of_ours_ends_the_run() -> None:
    with pytest.raises(torch.cuda.OutOfMemoryError):
        timing.measure(Case("nt_xent", "n=8", "float32", {OURS: out_of_memory, "half": half}), None)


def test_inputs_take_turns_until_they_fill_the_cache_twice() -> None:
    made = []
    timing.copies_of(lambda: made.append(1), half(), megabytes=0.5)  # of a cache of 1 MB
    assert len(made) == 3
    assert len(timing.copies_of(half, half(), megabytes=100.0)) == 1
    assert len(timing.copies_of(half, half(), megabytes=0.0)) == timing.MOST_COPIES


def test_the_floor_is_the_longest_of_three() -> None:
    assert FLOORS.seconds(100e9, 0, 0, "float32") == pytest.approx(1)
    assert FLOORS.seconds(1000e9, 0, 0, "bfloat16") == pytest.approx(1)
    assert FLOORS.seconds(100e9, 0, 4e9, "float32") == pytest.approx(2)
    assert FLOORS.seconds(100e9, 30e9, 4e9, "float32 from bfloat16") == pytest.approx(3)
    assert FLOORS.seconds(0, 200e3, 0) == pytest.approx(1e-6)


def test_every_rate_is_measured() -> None:
    found = floors.measured(64, (0.25, 1))
    assert all(rate > 0 for rate in (found.fma_gflops, found.tf32_gflops, found.gemm_gflops))
    assert found.report()["bandwidths"].keys() == {0.25, 1}
    assert "GB/s of a copy over 0.25 MB" in found.sentence()


@pytest.mark.parametrize("architecture", [80, 90, 100])
def test_the_kernel_of_exponentials_is_launched_and_compiles(architecture: int) -> None:
    """Its launch is noted and not made; a kernel that spilled would measure memory."""
    pytest.importorskip("triton")
    from benchmarks import launches
    from benchmarks.gpu import exponential

    with launches.recorded("exponentials") as found:
        assert exponential.rate() > 0
    compiled = found[0].compile(architecture)
    used = launches.resources(compiled)
    assert (used.stack, used.local) == (0, 0)
    assert "ex2.approx" in compiled.asm["ptx"]


def test_inputs_are_made_anew_for_each_buffer(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = where.kept(torch.zeros)
    assert inputs(3) is not inputs(3)
    monkeypatch.setattr(where, "on_gpu", lambda: False)
    assert inputs(3) is inputs(3)


def test_a_compiled_provider_is_compiled_twice_if_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    modes = []

    def make() -> Work:
        modes.append(where._mode)
        return half()

    providers = {OURS: make, "torch.compile": make, "torch.compile, chunked": make}
    assert where.with_autotuned(providers) == providers  # where cases are small, and only traced
    monkeypatch.setattr(where, "_small", False)
    assert where.with_autotuned(providers) == providers  # where nobody asked for the search
    monkeypatch.setattr(where, "_searching", True)
    doubled = where.with_autotuned(providers)
    assert list(doubled) == [OURS, "torch.compile", "torch.compile max-autotune", "torch.compile, chunked"]
    for provider in doubled.values():
        provider()
    assert modes == [None, None, "max-autotune-no-cudagraphs", None]
