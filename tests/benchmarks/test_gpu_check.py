"""The check of the GPU kernels without a GPU: a dry run, what is resumed and adopted, dying processes, the ledger."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import harness
from benchmarks.gpu import check, ledger, pages, pretend, processes, stages
from benchmarks.gpu.__main__ import main
from benchmarks.gpu.stages import Stage
from fastssl.errors import UserError

ROOT = Path(__file__).parent.parent.parent


def test_a_dry_run_tries_every_op_and_claims_no_kernel(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.gpu", "--dry-run", "--minutes", "40", "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    assert "all is right, but no kernel ran: this was a dry run" in done.stdout
    assert_every_op_was_tried(tmp_path)
    assert_no_kernel_is_claimed(tmp_path)
    with pytest.raises(UserError, match="of a dry run"):
        check.adopt(tmp_path, tmp_path / "repository")


def assert_every_op_was_tried(out: Path) -> None:
    names = {"build", "tests", "memcheck", "benchmarks"}
    records = {name: json.loads((out / f"{name}.json").read_text()) for name in names}
    parts = {name: record["parts"] for name, record in records.items()}
    every_op = set(stages.ops_with_kernels())
    assert parts["build"]["build"]["wheel with"] == ["_cpu"]
    assert set(parts["tests"]) == {*every_op, stages.OTHERS}
    assert all(parts["tests"][op]["passed"][stages.PRETENDED] >= 6 for op in every_op)
    assert all(parts["tests"][op]["collected"] > parts["tests"][op]["passed"][stages.PRETENDED] for op in every_op)
    assert set(parts["memcheck"]) == every_op
    assert all(found["calls"] > 5 for found in parts["memcheck"].values())
    measured = parts["benchmarks"].values()
    assert {part["op"] for part in measured} == {*harness.OPS, *harness.WHOLE}
    for part in measured:
        ours, *others = part["rows"]
        assert {"median", "wall_median", "peak_extra_megabytes", "input_megabytes"} <= ours.keys()
        assert any("median" in row for row in others)
    floors = records["benchmarks"]["run"]["floors"]
    assert all(floors[rate] > 0 for rate in ("fma_gflops", "tf32_gflops", "gemm_gflops"))


def assert_no_kernel_is_claimed(out: Path) -> None:
    """In results, ledger and pages."""
    entries = json.loads((out / check.LEDGER).read_text())
    assert set(entries) == set(ledger.files())
    assert all("unproven" in entry and "sha256" not in entry for entry in entries.values())
    reports = [json.loads(path.read_text()) for path in (out / "results").rglob("*.json")]
    assert {report["run"]["machine"] for report in reports} == {pretend.NAME}
    for row in (row for report in reports for row in report["rows"] if "failed" not in row):
        assert (row["device"], row["backend"] in ("cuda", "triton")) == ("cpu", False), row
        assert row["timed_by"].startswith("pretended ")
    (machine,) = (out / "pages" / "performance").glob("*.md")
    told = (out / "pages" / "performance.md").read_text()
    assert pages.DRY in told
    assert pages.DRY in machine.read_text()
    assert told.count("| **unproven**: ") == len(ledger.kernels())


def test_of_an_ops_tests_a_dry_run_takes_some() -> None:
    gpu, own = "tests/ops/test_gpu.py::", "tests/ops/test_ema_update.py::"
    tests = [f"{gpu}a[ema_update_-cuda]", f"{gpu}b[ema_update_-cuda-float32]"]
    more = [f"{own}a[triton-0.5]", f"{own}a[cuda-0.5]", f"{own}b[cuda]", "tests/ops/test_x.py::large[cuda]"]
    assert stages.some_of("ema_update", [*tests, *more]) == [
        *tests,
        f"{own}a[cuda-0.5]",
        "tests/ops/test_x.py::large[cuda]",
    ]
    assert stages.some_of(stages.OTHERS, ["tests/ops/test_x.py::b", "tests/ops/test_x.py::a[triton]"]) == [
        "tests/ops/test_x.py::a[triton]"
    ]
    assert stages.some_of(stages.OTHERS, ["tests/ops/test_x.py::b", "tests/ops/test_x.py::c"]) == [
        "tests/ops/test_x.py::b"
    ]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_gpu_the_check_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["benchmarks.gpu"])
    assert main() == 2
    assert capsys.readouterr().err == "torch finds no GPU here; --dry-run goes through the stages without one\n"


# ---- what a run leaves to the next ----


def no_files(part: str) -> tuple[str, ...]:
    return ()


class Counted:
    """A stage whose parts count how often they are done; one of them has no time at first."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.in_time = False

    def stage(self, sources: tuple[str, ...] = ("setup.py",)) -> Stage:
        return Stage("counted", 1, lambda part: sources, lambda dry: ["a", "b", "c"], self.run)

    def run(self, parts: list[str], seconds: float, tell: stages.Tell, dry: bool) -> None:
        for part in parts:
            if part != "b" or self.in_time:
                self.done.append(part)
                tell(part, {"failed": "it is wrong"} if part == "c" else {"calls": 3})


def test_a_part_is_done_once_for_the_same_sources(tmp_path: Path) -> None:
    counted, said = Counted(), []
    assert not check.perform(counted.stage(), tmp_path, 10, True, said.append)
    assert said[-1] == "counted: no time was left for b; the next run begins with them"
    counted.in_time = True
    assert not check.perform(counted.stage(), tmp_path, 10, True, said.append)
    assert counted.done == ["a", "c", "b"]
    assert "counted: 2 of 3 parts were done before" in said
    assert any("c FAILED: it is wrong" in line for line in said)
    check.perform(counted.stage(("setup.py", "MANIFEST.in", "pyproject.toml")), tmp_path, 10, True, said.append)
    assert counted.done == ["a", "c", "b", "a", "b", "c"]


def test_only_parts_whose_own_sources_changed_are_done_anew(tmp_path: Path) -> None:
    counted, each = Counted(), {"a": "setup.py", "b": "MANIFEST.in", "c": "CMakeLists.txt"}
    counted.in_time = True
    stage = Stage("counted", 1, lambda part: (each[part],), lambda dry: ["a", "b", "c"], counted.run)
    check.perform(stage, tmp_path, 10, True, lambda line: None)
    each["b"] = "pyproject.toml"
    check.perform(stage, tmp_path, 10, True, lambda line: None)
    assert counted.done == ["a", "b", "c", "b"]


def test_what_the_repository_has_adopted_is_not_done_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counted, there = Counted(), tmp_path / "repository"
    counted.in_time = True
    check.perform(counted.stage(), there / check.results_of("none"), 10, True, lambda line: None)
    monkeypatch.setattr(check, "environment", lambda: {"device": "none"})
    check.perform(counted.stage(), there / check.results_of("none"), 10, True, lambda line: None)
    assert counted.done == ["a", "b", "c"] * 2  # in another environment
    monkeypatch.setattr(ledger, "ROOT", there)
    (there / "setup.py").write_text((Path(__file__).parents[2] / "setup.py").read_text())
    check.perform(counted.stage(), tmp_path / "out", 10, True, lambda line: None)
    assert counted.done == ["a", "b", "c"] * 2


def test_an_ops_results_are_of_its_own_files() -> None:
    for sources in (stages.tested, stages.measured):
        files = set(stages.files_of(sources("tiles")))
        assert {"csrc/cuda/tiles.cu", "csrc/bindings/cuda.cpp", "fastssl/ops/tiles.py", "CMakeLists.txt"} <= files
        assert "csrc/cuda/ema_update.cu" not in files
        everything = set(stages.files_of(sources(stages.OTHERS)))
        assert {"csrc/cuda/ema_update.cu", *files} <= everything | {"CMakeLists.txt"}
    assert {"tests/ops/test_tiles.py", "tests/ops/test_gpu.py", "tests/conftest.py"} <= set(
        stages.files_of(stages.tested("tiles"))
    )
    assert "tests/ops/test_ema_update.py" not in stages.tested("tiles")
    assert {"benchmarks/ops/tiles.py", "benchmarks/gpu/timing.py", "benchmarks/harness.py"} <= set(
        stages.files_of(stages.measured("tiles of 3"))
    )


def test_stages_share_the_time_that_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[float] = []

    def run(parts: list[str], seconds: float, tell: stages.Tell, dry: bool) -> None:
        given.append(seconds)
        tell("only", {})

    shares = [Stage(name, share, no_files, lambda dry: ["only"], run) for name, share in (("a", 1), ("b", 3))]
    monkeypatch.setattr(check, "STAGES", shares)
    monkeypatch.setattr(check, "write_ledger", lambda *_: None)
    assert check.run(tmp_path, 1.0, None, True, lambda line: None)
    assert given == pytest.approx([15, 60], abs=2)


@pytest.mark.parametrize("only", ["b", "ledger"])
def test_one_stage_alone_has_all_the_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, only: str) -> None:
    given: list[tuple[str, float]] = []

    def stage(name: str) -> Stage:
        def run(parts: list[str], seconds: float, tell: stages.Tell, dry: bool) -> None:
            given.append((name, seconds))
            tell("all", {})

        return Stage(name, 1, no_files, lambda dry: ["all"], run)

    monkeypatch.setattr(check, "STAGES", [stage(name) for name in ("a", "b", "c")])
    monkeypatch.setattr(check, "write_ledger", lambda *_: given.append(("ledger", 60)))
    assert check.run(tmp_path, 1.0, only, True, lambda line: None)
    assert given == [(only, pytest.approx(60, abs=2))]


def test_nothing_is_tested_of_a_module_that_is_not_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would fail, and the failure be kept."""
    done: list[str] = []

    def building(parts: list[str], seconds: float, tell: stages.Tell, dry: bool) -> None:
        done.append("build")  # its time ends

    def testing(parts: list[str], seconds: float, tell: stages.Tell, dry: bool) -> None:
        done.append("tests")
        tell("only", {})

    found = [
        Stage("build", 1, no_files, lambda dry: ["all"], building),
        Stage("tests", 1, no_files, lambda dry: ["only"], testing),
    ]
    monkeypatch.setattr(check, "STAGES", found)
    monkeypatch.setattr(check, "write_ledger", lambda *_: None)
    said: list[str] = []
    for there in (False, True):
        monkeypatch.setattr(check, "module_is_there", lambda there=there: there)
        assert not check.run(tmp_path, 1.0, None, False, said.append)
    assert done == ["build", "build", "tests"]
    assert "tests: not begun, for fastssl._cuda is not built: the next run goes on with the build" in said


# ---- processes ----

CHILD = """
import json, os, sys, time
for item in sys.argv[1:]:
    print("doing", item, flush=True)
    if item == "dies": os._exit(7)
    if item == "waits": time.sleep(60)
    print(json.dumps({"item": item, "result": {"calls": 1}}), flush=True)
"""


def told(items: list[str], seconds: float = 30.0) -> tuple[dict[str, Any], list[str]]:
    found: dict[str, Any] = {}
    left = processes.each(
        [sys.executable, "-c", CHILD], items, seconds, lambda item, result, said: found.update({item: (result, said)})
    )
    return found, left


def test_an_item_that_ends_its_process_fails_alone() -> None:
    found, left = told(["a", "dies", "b"])
    assert left == []
    assert found["a"] == ({"calls": 1}, "doing a")
    assert found["b"][0] == {"calls": 1}
    assert found["dies"][0] == {"failed": "the process ended with 7: doing dies"}


def test_the_end_of_each_process_is_told() -> None:
    ends: list[tuple[list[str], int, str]] = []
    command = [sys.executable, "-c", CHILD + "print('at last'); sys.exit(3)"]
    processes.each(command, ["a", "dies", "b"], 30.0, lambda *_: None, lambda *end: ends.append(end))
    assert ends == [(["a"], 7, "doing dies"), (["b"], 3, "at last")]


def test_two_deaths_in_a_row_end_it() -> None:
    found, left = told(["dies", "dies", "a", "b"])
    assert left == []
    assert [result["failed"] for result, _ in found.values()] == ["the process ended with 7: doing dies"] * 3


def test_what_outlasts_its_time_is_ended_and_left() -> None:
    start = time.monotonic()
    found, left = told(["a", "waits", "b"], seconds=1.0)
    assert time.monotonic() - start < 10
    assert (set(found), left) == ({"a"}, ["waits", "b"])
    assert processes.run([sys.executable, "-c", "import time; print(1, flush=True); time.sleep(60)"], 0.5) == (
        None,
        "1",
    )
    assert processes.run([sys.executable, "-c", "print(2); raise SystemExit(3)"], 30) == (3, "2")
