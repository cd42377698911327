"""What one machine's page may hold: one instruction set, one speed; and how a machine is called."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import __main__ as command
from benchmarks import harness, hosts, publish, summary, tables
from fastssl.errors import UserError

AMX, AVX = "Intel(R) Xeon(R) Processor, amx, 2 threads", "Intel(R) Xeon(R) Processor, avx512, 2 threads"


def test_a_machine_is_called_by_its_processor_and_instruction_set() -> None:
    run = {"processor": "Intel(R) Xeon(R) Processor, 2 threads", "C++ kernels": "amx in use, built for baseline avx2"}
    assert summary.name_of(run) == AMX
    assert summary.name_of({**run, "machine": AMX}) == AMX
    kept = {**run, "machine": f"{run['processor']}, freed memory kept"}
    assert summary.name_of(kept) == f"{AMX}, freed memory kept"
    assert summary.name_of({**run, "C++ kernels": "fastssl._cpu was not built"}) == run["processor"]
    assert (
        summary.name_of({"machine": "NVIDIA H100", "processor": AMX, "CUDA kernels": "built for 90"}) == "NVIDIA H100"
    )


def test_a_new_run_has_the_name_of_what_serves_it() -> None:
    name = summary.name_of(harness.circumstances())
    model, isa, threads = name.split(", ")
    assert f"{model}, {threads}" == harness.processor()
    assert isa in {"baseline", "avx2", "avx512", "avx512bf16", "amx"}


@pytest.mark.parametrize("kept", [False, True])
def test_a_run_writes_into_the_folder_of_its_machine(
    kept: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(summary, "RESULTS", tmp_path)
    monkeypatch.setattr(command, "limit_memory", lambda: None)
    monkeypatch.setattr(command, "measured_floors", lambda *_: (None, "not measured"))
    monkeypatch.setattr(command, "rows_of", lambda *_: [])
    monkeypatch.setattr(command.allocator, "keep_freed_memory", lambda: None)
    words = ["benchmarks", "--only", "tiles", "--threads", str(torch.get_num_threads())]
    monkeypatch.setattr("sys.argv", [*words, "--keep-memory"] if kept else words)
    command.main()
    name = summary.name_of(harness.circumstances()) + (", freed memory kept" if kept else "")
    run = json.loads((tmp_path / summary.folder_of(name) / "tiles.json").read_text())["run"]
    assert run["machine"] == summary.name_of(run) == name


def test_a_machine_has_one_folder() -> None:
    assert summary.folder_of(AMX) == "intel-xeon-amx-2-threads"
    assert summary.folder_of("AMD EPYC, avx512bf16, 2 threads") == "amd-epyc-avx512bf16-2-threads"
    assert (
        summary.folder_of("Intel(R) Core(TM) i7-8700K CPU @ 3.70GHz, avx2, 6 threads")
        == "intel-core-i7-8700k-3-70ghz-avx2-6-threads"
    )


def written(results: Path, op: str, isa: str, gflops: float | None, **run: Any) -> None:
    """A file in the folder of the machine with a matrix unit."""
    row = {"op": op, "shape": "n=1", "dtype": "float32", "provider": "fastssl", "median": 1.0, "best_rival": None}
    circumstances = {"processor": "Intel(R) Xeon(R) Processor, 2 threads", "C++ kernels": f"{isa} in use", **run}
    circumstances |= {"date": "2026-11-27", "floors": "not measured" if gflops is None else {"fma_gflops": gflops}}
    path = results / summary.folder_of(AMX) / f"{op}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"run": circumstances, "rows": [row]}))


def test_a_folder_of_one_host_is_published(tmp_path: Path) -> None:
    for op, gflops in (("a", 400.0), ("b", 450.0), ("c", 490.0), ("d", None)):
        written(tmp_path, op, "amx", gflops)
    (machine,) = summary.machines(tmp_path)
    hosts.demand_alike([machine])
    assert {case.speed for report in machine.reports for case in report.cases} == {1.0}


def test_another_instruction_set_in_a_folder_is_refused(tmp_path: Path) -> None:
    for op, isa in (("a", "amx"), ("b", "avx512"), ("c", "amx")):
        written(tmp_path, op, isa, 450.0)
    with pytest.raises(UserError) as refused:
        hosts.demand_alike(summary.machines(tmp_path))
    folder = f"benchmarks/results/{summary.folder_of(AMX)}"
    assert f"{folder}/b.json is of {AVX}: it belongs into {summary.folder_of(AVX)}" in str(refused.value)
    assert "a.json" not in str(refused.value)


@pytest.mark.parametrize("gflops", [225.0, 600.0])
def test_another_speed_in_a_folder_is_refused(gflops: float, tmp_path: Path) -> None:
    for op in ("a", "b"):
        written(tmp_path, op, "amx", 450.0)
    written(tmp_path, "c", "amx", gflops)
    with pytest.raises(UserError, match=r"/c\.json was measured at \d+ % of the machine's usual") as refused:
        hosts.demand_alike(summary.machines(tmp_path))
    assert "a.json" not in str(refused.value)


def test_a_known_slower_speed_is_published_and_marked(tmp_path: Path) -> None:
    for op in ("a", "b"):
        written(tmp_path, op, "amx", 450.0)
    written(tmp_path, "c", "amx", 225.0, remark=hosts.SLOWER)
    (machine,) = summary.machines(tmp_path)
    hosts.demand_alike([machine])
    marked = [tables.loss_of(case) for report in machine.reports for case in report.cases]
    assert marked == [
        "`a`, n=1, float32",
        "`b`, n=1, float32",
        "`c`, n=1, float32 (measured while the machine was slower: 50 % of its usual speed)",
    ]
    written(tmp_path, "c", "amx", 600.0, remark=hosts.SLOWER)
    with pytest.raises(UserError, match="133 %"):
        hosts.demand_alike(summary.machines(tmp_path))


def test_the_committed_results_are_each_of_their_folders_host() -> None:
    machines = summary.machines(summary.RESULTS)
    hosts.demand_alike(machines)
    pages = {path.stem for path in (publish.DOCS / "performance").glob("*.md")}
    assert pages == {machine.folder for machine in machines}, "run python -m benchmarks.publish, remove what is no more"
