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

from benchmarks import harness, publish, summary, where
from benchmarks.gpu import check, ledger, processes, stages
from benchmarks.gpu.__main__ import main
from benchmarks.gpu.stages import Stage
from fastssl import info
from fastssl.errors import UserError

ROOT = Path(__file__).parent.parent.parent
H100 = "NVIDIA H100 80GB HBM3"


def test_a_dry_run_goes_through_all_stages_and_writes_no_ledger(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.gpu", "--dry-run", "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    parts = {path.stem: json.loads(path.read_text())["parts"] for path in tmp_path.glob("*.json")}
    assert set(parts) == {"build", "tests", "memcheck", "benchmarks"}
    assert parts["tests"]["nt_xent"]["skipped"] > 5
    assert set(parts["memcheck"]) == set(stages.ops_with_kernels(False))
    assert all(found["calls"] > 5 for found in parts["memcheck"].values())
    for rows in (part["rows"] for part in parts["benchmarks"].values()):
        ours, *others = rows
        assert ours["timed_by"] == "graph"
        assert {"median", "wall_median", "floor", "peak_extra_megabytes", "input_megabytes"} <= ours.keys()
        assert any("median" in row for row in others)
    assert "ledger: nothing is written of a run without a GPU" in done.stdout
    with pytest.raises(UserError, match="of a dry run"):
        check.adopt(tmp_path, tmp_path / "repository")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_gpu_the_check_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["benchmarks.gpu"])
    assert main() == 2
    assert capsys.readouterr().err == "torch finds no GPU here; --dry-run goes through the stages without one\n"


# ---- what a run leaves to the next ----


class Counted:
    """A stage whose parts count how often they are done; one of them has no time at first."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.in_time = False

    def stage(self, sources: tuple[str, ...] = ("setup.py",)) -> Stage:
        return Stage("counted", 1, sources, lambda dry: ["a", "b", "c"], self.run)

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


def test_stages_share_the_time_that_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[float] = []

    def run(parts: list[str], seconds: float, tell: stages.Tell, dry: bool) -> None:
        given.append(seconds)
        tell("only", {})

    shares = [Stage(name, share, (), lambda dry: ["only"], run) for name, share in (("a", 1), ("b", 3))]
    monkeypatch.setattr(check, "STAGES", shares)
    monkeypatch.setattr(check, "write_ledger", lambda *_: None)
    assert check.run(tmp_path, 1.0, None, True, lambda line: None)
    assert given == pytest.approx([15, 60], abs=2)


def test_nothing_is_tested_of_a_module_that_is_not_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would fail, and the failure be kept."""
    done: list[str] = []

    def building(parts: list[str], seconds: float, tell: stages.Tell, dry: bool) -> None:
        done.append("build")  # its time ends

    def testing(parts: list[str], seconds: float, tell: stages.Tell, dry: bool) -> None:
        done.append("tests")
        tell("only", {})

    found = [Stage("build", 1, (), lambda dry: ["all"], building), Stage("tests", 1, (), lambda dry: ["only"], testing)]
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


def test_memcheck_reads_what_the_sanitizer_says(monkeypatch: pytest.MonkeyPatch) -> None:
    def each(command: Any, parts: list[str], seconds: float, tell: Any, **environment: str) -> None:
        assert command[:3] == ["/bin/sanitizer", "--tool", "memcheck"]
        assert environment == {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
        tell("good", {"calls": 2}, "========= COMPUTE-SANITIZER\n")
        tell("bad", {"calls": 2}, "========= Invalid __global__ read of size 4 bytes\n=========     at kernel\n")

    monkeypatch.setattr(stages, "sanitizer", lambda: "/bin/sanitizer")
    monkeypatch.setattr(processes, "each", each)
    found: dict[str, Any] = {}
    stages.memcheck(["good", "bad"], 10, lambda part, result: found.update({part: result}), False)
    assert found["good"] == {"calls": 2}
    assert "Invalid __global__ read" in found["bad"]["failed"]
    monkeypatch.setattr(stages, "sanitizer", lambda: None)
    stages.memcheck(["good"], 10, lambda part, result: found.update({part: result}), False)
    assert found["good"] == {"skipped": "compute-sanitizer is not installed"}


def test_where_pip_fails_the_modules_are_built_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "fastssl").mkdir()
    old, built = (tmp_path / "fastssl" / f"_{name}.so" for name in ("cpu", "cuda"))
    old.touch()
    commands: list[str] = []

    def run(command: list[Any], seconds: float, **environment: str) -> tuple[int | None, str]:
        assert environment.get("TORCH_CUDA_ARCH_LIST", "9.0") == "9.0"
        commands.append(" ".join(map(str, command)))
        if "--build" in command:
            (tmp_path / "build" / "modules" / "out").mkdir(parents=True)
            (tmp_path / "build" / "modules" / "out" / built.name).touch()
        return (1, "setuptools is too old") if "pip" in command else (0, "what it says")

    monkeypatch.setattr(stages, "ROOT", tmp_path)
    monkeypatch.setattr(processes, "run", run)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    for variable in ("FASTSSL_CUDA", "TORCH_CUDA_ARCH_LIST", "CUDAARCHS"):
        monkeypatch.delenv(variable, raising=False)
    found: dict[str, Any] = {}
    stages.build(["build"], 100, lambda part, result: found.update(result), False)
    assert commands[0].endswith("--no-build-isolation --no-deps --disable-pip-version-check --editable .")
    assert (found["failed"], found["modules alone"]) == ("setuptools is too old", "built")
    assert built.exists()
    assert not old.exists()


@pytest.mark.parametrize(
    ("test", "op"),
    [
        ("tests/ops/test_ema_update.py::test_it[cuda]", "ema_update"),
        ("tests/ops/test_gpu.py::test_it[nt_xent_backward-triton]", "nt_xent"),
        ("tests/ops/test_contract.py::test_it[cuda-queue_info_nce_backward]", "queue_info_nce"),
        ("tests/ops/test_contract.py::test_it[cuda-ema_update_]", "ema_update"),
        ("tests/ops/test_crossover.py::test_it", stages.OTHERS),
    ],
)
def test_every_test_is_of_an_op_or_of_none(test: str, op: str) -> None:
    assert stages.op_of(test) == op


def test_every_op_is_measured_before_one_is_measured_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(where, "_device", where.device())  # put back afterwards
    names = stages.cases_in_order(dry=False)
    assert names[0] == "nt_xent rows=16384 d=128 bfloat16"
    assert {name.partition(" ")[0] for name in names[: len(harness.OPS)]} == set(harness.OPS)
    assert len(set(names)) == len(names)


def test_pytests_report_is_counted_by_backend(tmp_path: Path) -> None:
    report = tmp_path / "report.xml"
    cases = '<testcase classname="t" name="a[cuda]"/><testcase classname="t" name="b[nt_xent-triton-float32]"/>'
    cases += '<testcase classname="t" name="c[cuda]"><skipped/></testcase><testcase classname="t" name="d"/>'
    report.write_text(f"<testsuites><testsuite>{cases}</testsuite></testsuites>")
    assert stages.outcome(report) == {"passed": {"cuda": 1, "triton": 1, "": 1}, "skipped": 1, "failures": []}
    wrong = '<testcase classname="t" name="e[cuda]"><failure message="it differs&#10;by much"/></testcase>'
    report.write_text(f"<testsuites><testsuite>{wrong}</testsuite></testsuites>")
    assert stages.outcome(report)["failures"] == ["t::e[cuda]: it differs"]


# ---- the ledger ----


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Sources of two kernels, and all that reads them told to look there."""
    (tmp_path / "csrc" / "cuda").mkdir(parents=True)
    (tmp_path / "fastssl" / "ops" / "triton").mkdir(parents=True)
    (tmp_path / "csrc/cuda/ema_update.cu").write_text(
        '#include "ema_update.h"\n#include <cuda.h>\n#include "common.cuh"\n'
    )
    (tmp_path / "csrc/cuda/ema_update.h").write_text("// declared\n")
    (tmp_path / "csrc/cuda/common.cuh").write_text("// shared\n")
    (tmp_path / "fastssl/ops/triton/nt_xent.py").write_text("from fastssl.ops.triton import _dot\nimport triton\n")
    (tmp_path / "fastssl/ops/triton/_dot.py").write_text("from fastssl.ops.triton._load import load\n")
    (tmp_path / "fastssl/ops/triton/_load.py").write_text("load = 1\n")
    for module in (ledger, stages, info):
        monkeypatch.setattr(module, "ROOT", tmp_path)
    monkeypatch.setattr(info, "PROVEN", tmp_path / "fastssl" / "gpu_proven.json")
    monkeypatch.setattr(info, "gpu_kernels", lambda: {"ema_update": {"cuda"}, "nt_xent": {"triton"}})
    return tmp_path


PASSED = {"ema_update": {"passed": {"cuda": 31}, "failures": []}, "nt_xent": {"passed": {"triton": 40}, "failures": []}}


def test_what_passed_is_proven_until_a_source_changes(repository: Path) -> None:
    found = ledger.updated({}, PASSED, {}, H100, "benchmarks/results/x/check")
    assert set(found) == {
        *(f"csrc/cuda/{name}" for name in ("ema_update.cu", "ema_update.h", "common.cuh")),
        *(f"fastssl/ops/triton/{name}.py" for name in ("nt_xent", "_dot", "_load")),
    }
    entry = found["csrc/cuda/ema_update.cu"]
    assert (entry["device"], entry["tests"], entry["results"]) == (H100, "passed 31", "benchmarks/results/x/check")
    assert entry["sha256"] == ledger.sha256("csrc/cuda/ema_update.cu")
    assert entry["memcheck"] == "not reached"
    skipped = ledger.updated(
        {}, PASSED, {"ema_update": {"skipped": "not installed"}, "nt_xent": {"calls": 3}}, H100, ""
    )
    assert skipped["csrc/cuda/ema_update.cu"]["memcheck"] == "skipped: not installed"
    assert skipped["fastssl/ops/triton/nt_xent.py"]["memcheck"] == "passed"
    assert set(ledger.proven(found)) == {"ema_update cuda", "nt_xent triton"}
    (repository / "csrc/cuda/common.cuh").write_text("// shared, changed\n")
    assert set(ledger.proven(found)) == {"nt_xent triton"}
    assert ledger.unproven(found) == ["csrc/cuda/ema_update.cu"]
    (repository / "fastssl/ops/triton/_load.py").write_text("load = 2\n")
    assert ledger.proven(found) == {}


def test_what_failed_loses_its_entry_and_what_did_not_run_keeps_it(repository: Path) -> None:
    found = ledger.updated({}, PASSED, {}, H100, "r")
    assert ledger.updated(found, {}, {}, H100, "r") == found
    failed = {"ema_update": {"passed": {"cuda": 30}, "failures": ["test: it differs"], "failed": "1 tests"}}
    assert set(ledger.proven(ledger.updated(found, failed, {}, H100, "r"))) == {"nt_xent triton"}
    skipped = {"ema_update": {"passed": {}, "skipped": 31, "failures": []}}
    assert set(ledger.proven(ledger.updated(found, skipped, {}, H100, "r"))) == {"nt_xent triton"}
    unsafe = ledger.updated({}, PASSED, {"nt_xent": {"failed": "Invalid __global__ read"}}, H100, "r")
    assert set(ledger.proven(unsafe)) == {"ema_update cuda"}


def test_info_tells_what_is_proven_and_what_is_not(repository: Path) -> None:
    assert info.gpu_sentence(info.gpu_proven()) == "not yet run on a GPU"
    found = ledger.updated({}, {"nt_xent": PASSED["nt_xent"]}, {}, H100, "r")
    info.PROVEN.write_text(json.dumps(ledger.proven(found)))
    date = found["fastssl/ops/triton/nt_xent.py"]["date"]
    checked = f"checked on {H100} on {date}: nt_xent (Triton); not yet run on a GPU: ema_update (CUDA)"
    assert info.gpu_sentence(info.gpu_proven()) == checked
    assert info.facts()["GPU kernels"] == checked
    (repository / "fastssl/ops/triton/_dot.py").write_text("# changed\n")
    assert info.gpu_sentence(info.gpu_proven()) == "not yet run on a GPU"


def test_readme_and_info_tell_what_the_ledger_says() -> None:
    readme = (ROOT / "README.md").read_text()
    assert publish.with_gpu_sentence(readme) == readme, "run python -m benchmarks.publish"
    proven = ledger.proven(ledger.read())
    assert json.loads(info.PROVEN.read_text()) == proven, "run python -m benchmarks.publish"
    for path, entry in ledger.read().items():
        assert {"sha256", "device", "date", "tests", "results"} <= entry.keys(), path


def test_a_checks_results_are_adopted(repository: Path, tmp_path: Path) -> None:
    subject = {"device": H100, "dry_run": False, "sources": "others"}
    row = {
        "op": "nt_xent",
        "shape": "n=1",
        "dtype": "float32",
        "provider": "fastssl",
        "median": 0.01,
        "best_rival": None,
    }
    run = {"machine": H100, "processor": "A CPU", "date": "2026-01-01"}
    parts = {"nt_xent n=1 float32": {"op": "nt_xent", "rows": [row]}, "ema": {"failed": "out of memory"}}
    out = tmp_path / "out"
    check.write(out / "benchmarks.json", {"subject": subject, "run": run, "parts": parts})
    check.write(out / "tests.json", {"subject": subject, "run": {}, "parts": PASSED})
    check.write(out / check.LEDGER, ledger.updated({}, PASSED, {}, H100, "r"))
    written = {str(path.relative_to(repository)) for path in check.adopt(out, repository)}
    folder = "benchmarks/results/nvidia-h100-80gb-hbm3"
    assert written == {f"{folder}/nt_xent.json", f"{folder}/check/tests.json", "benchmarks/gpu_ledger.json"}
    (machine,) = summary.machines(repository / "benchmarks" / "results")
    assert (machine.name, [report.op for report in machine.reports]) == (H100, ["nt_xent"])
    assert machine.reports[0].run["commit"] == ""  # of sources that are not these
    with pytest.raises(UserError, match="no results of a check"):
        check.adopt(tmp_path / "nowhere", repository)
