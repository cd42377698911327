"""The stages of the check without a GPU: what is built, what is told of tests and memcheck, what is compiled ahead."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from benchmarks import harness, where
from benchmarks.gpu import building, ledger, measure, processes, stages
from fastssl import info
from fastssl.ops import _native


def test_memcheck_reads_what_the_sanitizer_says(monkeypatch: pytest.MonkeyPatch) -> None:
    def each(command: Any, parts: list[str], seconds: float, tell: Any, ended: Any, **environment: str) -> None:
        assert command[:3] == ["/bin/sanitizer", "--tool", "memcheck"]
        assert environment == {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
        tell("good", {"calls": 2}, "========= COMPUTE-SANITIZER\n")
        tell("bad", {"calls": 2}, "========= Invalid __global__ read of size 4 bytes\n=========     at kernel\n")
        ended(["good", "bad"], 0, "========= ERROR SUMMARY: 0 errors\n")
        tell("late", {"calls": 2}, "")
        ended(["late"], stages.FOUND_ERRORS, "========= Invalid __shared__ write of size 2 bytes\n")
        tell("silent", {"calls": 2}, "")
        ended(["silent"], stages.FOUND_ERRORS, "")

    monkeypatch.setattr(stages, "sanitizer", lambda: "/bin/sanitizer")
    monkeypatch.setattr(processes, "each", each)
    found: dict[str, Any] = {}
    parts = ["good", "bad", "late", "silent"]
    stages.memcheck(parts, 10, lambda part, result: found.update({part: result}), False)
    assert found["good"] == {"calls": 2}
    assert "Invalid __shared__ write" in found["late"]["failed"]
    assert "it found errors" in found["silent"]["failed"]
    assert "Invalid __global__ read" in found["bad"]["failed"]
    monkeypatch.setattr(stages, "sanitizer", lambda: None)
    stages.memcheck(["good"], 10, lambda part, result: found.update({part: result}), False)
    assert found["good"] == {"skipped": "compute-sanitizer is not installed"}


def test_a_process_that_builds_the_kernels_tells_of_them_as_one_that_loads_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or results would be of two environments."""
    (tmp_path / "fastssl").mkdir()
    monkeypatch.setattr(info, "ROOT", tmp_path)
    assert stages.environment()["nvcc"] == "not built"
    (tmp_path / "fastssl" / "_build.json").write_text('{"cuda": "built for 90a (nvcc 13.0)"}')
    for loaded in (None, SimpleNamespace()):
        monkeypatch.setattr(_native, "cuda", loaded)
        assert stages.environment()["nvcc"] == "built for 90a (nvcc 13.0)"


def test_where_pip_fails_the_modules_are_built_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "fastssl").mkdir()
    (tmp_path / "csrc").mkdir()
    (tmp_path / "CMakeLists.txt").touch()
    old, built = (tmp_path / "fastssl" / f"_{name}.so" for name in ("cpu", "cuda"))
    old.touch()
    commands: list[str] = []

    def run(command: list[Any], seconds: float, **environment: str) -> tuple[int | None, str]:
        assert environment.get("TORCH_CUDA_ARCH_LIST", "9.0") == "9.0"
        commands.append(" ".join(map(str, command)))
        if "--build" in command:
            (tmp_path / "build" / "modules" / "out").mkdir(parents=True)
            (tmp_path / "build" / "modules" / "out" / built.name).touch()
            (tmp_path / "build" / "modules" / "out" / "build.json").write_text('{"cuda": "built"}')
        return (1, "setuptools is too old") if "pip" in command else (0, "what it says")

    monkeypatch.setattr(building, "ROOT", tmp_path)
    monkeypatch.setattr(processes, "run", run)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    for variable in ("FASTSSL_CUDA", "TORCH_CUDA_ARCH_LIST", "CUDAARCHS"):
        monkeypatch.delenv(variable, raising=False)
    found: dict[str, Any] = {}
    building.build(["build"], 100, lambda part, result: found.update(result), False)
    assert commands[0].endswith("--no-build-isolation --no-deps --disable-pip-version-check --editable .")
    assert (found["failed"], found["modules alone"]) == ("setuptools is too old", "built")
    assert built.exists()
    assert not old.exists()
    assert building.module_is_there()
    (tmp_path / "CMakeLists.txt").write_text("set(changed)")
    assert not building.module_is_there()  # of these sources


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


def test_every_op_is_measured_before_its_further_cases(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(where, "_device", where.device())  # put back afterwards
    names = stages.cases_in_order(dry=False)
    assert names[0] == "nt_xent rows=16384 d=128 bfloat16"
    once = len(harness.OPS) + len(stages.SECOND)
    assert {name.partition(" ")[0] for name in names[:once]} == set(harness.OPS)
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


def test_what_a_dry_run_passes_is_of_no_backend(tmp_path: Path) -> None:
    report = tmp_path / "report.xml"
    report.write_text('<testsuites><testsuite><testcase classname="t" name="a[cuda]"/></testsuite></testsuites>')
    found = stages.outcome(report, dry=True)
    assert found["passed"] == {stages.PRETENDED: 1}
    assert ledger.verdict("ema_update", "cuda", {"ema_update": found}, {}) == "none of its tests ran"


def test_tests_that_cannot_be_imported_are_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the op that the file is of, though others of its tests pass; or else of no single op."""
    said = ["tests/ops/test_gpu.py::test_it[tiles-cuda]", "ERROR tests/ops/test_tiles.py - ModuleNotFoundError: no"]
    said += ["ERROR tests/ops/test_contract.py", "1 test collected, 2 errors in 0.80s"]

    def run(command: Any, seconds: float, **environment: str) -> tuple[int, str]:
        (report,) = (word.partition("=")[2] for word in command if str(word).startswith("--junitxml="))
        Path(report).write_text('<testsuite><testcase classname="t" name="test_it[tiles-cuda]"/></testsuite>')
        return 0, "1 passed"

    monkeypatch.setattr(processes, "start", lambda command: command)
    monkeypatch.setattr(processes, "lines", lambda process, deadline: iter(said))
    monkeypatch.setattr(processes, "run", run)
    found: dict[str, Any] = {}
    stages.tests([stages.OTHERS, "tiles"], 100, lambda part, result: found.update({part: result}), False)
    assert found["tiles"]["passed"] == {"cuda": 1}
    assert found["tiles"]["failed"] == "tests/ops/test_tiles.py cannot be imported"
    assert found[stages.OTHERS] == {"collected": 0, "failed": "tests/ops/test_contract.py cannot be imported"}


def test_pytest_that_ends_early_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever it reported by then: 4 is what it ends with where a test is not found."""
    monkeypatch.setattr(stages, "collected", lambda *_: (["tests/ops/test_tiles.py::test_it[cuda]"], []))
    monkeypatch.setattr(processes, "run", lambda command, seconds, **_: (4, "ERROR: not found"))
    found: dict[str, Any] = {}
    stages.tests(["tiles"], 100, lambda part, result: found.update({part: result}), False)
    assert found["tiles"]["failed"] == "ERROR: not found"


def test_an_ops_tests_are_shared_among_processes_and_counted_together() -> None:
    names = [f"t{i}" for i in range(25)]
    shared = stages.portions(names, 330, 10, dry=False)
    assert shared == [names[::2], names[1::2]]
    assert stages.portions(names, 400, 10, dry=True) == [names]
    assert stages.portions([], 400, 10, dry=False) == []
    fine = {"passed": {"cuda": 3}, "skipped": 1, "failures": [], "collected": 4, "seconds": 1.0}
    wrong = {**fine, "failures": ["t::a"], "failed": "1 tests", "said": "words"}
    assert stages.together([fine]) == fine
    both = stages.together([fine, wrong])
    assert (both["passed"], both["failures"], both["failed"], both["said"]) == (
        {"cuda": 6},
        ["t::a"],
        "1 tests",
        "words",
    )
    died = {"failed": "the end", "collected": 4, "seconds": 1.0}
    assert stages.together([fine, died])["failed"] == "the end"


def test_what_torch_compiles_is_compiled_ahead_by_many_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """And what it chose by timing while they shared the GPU is forgotten."""
    commands: list[list[str]] = []
    caches: list[Path] = []

    def run(command: list[str], seconds: float, **environment: str) -> tuple[int, str]:
        caches.append(Path(environment["TORCHINDUCTOR_CACHE_DIR"]))
        for name in ("kernel.best_config", "kernel.py"):
            (caches[-1] / f"{command[-2]}.{name}").touch()
        commands.append(command[-2:])
        return 0, ""

    def each(command: list[str], parts: list[str], seconds: float, tell: Any, **environment: str) -> None:
        assert environment == {"TORCHINDUCTOR_CACHE_DIR": str(caches[0])}
        left = sorted(path.name for path in caches[0].iterdir())
        assert left == ["a.kernel.py", "b.kernel.py"]
        tell(parts[0], {"rows": []}, "")

    monkeypatch.setattr(stages, "AT_ONCE", 2)
    monkeypatch.setattr(processes, "run", run)
    monkeypatch.setattr(processes, "each", each)
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
    found: dict[str, Any] = {}
    stages.benchmarks(["a", "b", "c", "d"], 10, lambda part, result: found.update({part: result}), False)
    assert sorted(commands) == [["a", "c"], ["b", "d"]]
    assert caches[0] == caches[1]
    assert found == {"a": {"rows": []}}


def test_ahead_each_provider_that_torch_compiles_is_called_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that fails is told when it is measured."""
    called: list[str] = []

    def provider(name: str) -> Any:
        def call() -> None:
            called.append(name)
            if "broken" in name:
                raise RuntimeError("it does not compile")

        return lambda: call

    names = (harness.OURS, "eager", "broken torch.compile", "torch.compile")
    cases = [SimpleNamespace(name=case, providers={f"{name}": provider(name) for name in names}) for case in "ab"]
    monkeypatch.setattr(harness, "cases", lambda: cases)
    with measure.pretended():
        measure.compile_all(["b"])
    assert called == [harness.OURS, "broken torch.compile", "torch.compile"]
