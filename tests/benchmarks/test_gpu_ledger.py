"""The ledger of the GPU kernels: what is proven, until what changes, who tells of it, and what the repository takes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from benchmarks import publish, summary
from benchmarks.gpu import check, ledger, stages
from fastssl import info
from fastssl.errors import UserError

ROOT = Path(__file__).parent.parent.parent
H100 = "NVIDIA H100 80GB HBM3"


SOURCES = {
    "csrc/cuda/ema_update.cu": '#include "ema_update.h"\n#include <cuda.h>\n#include "common.cuh"\n',
    "csrc/cuda/ema_update.h": "// declared\n",
    "csrc/cuda/common.cuh": '#include "../shared/shared.h"\n',
    "csrc/shared/shared.h": "// shared with the C++ kernels\n",
    "CMakeLists.txt": "# options of the compilers\n",
    "csrc/bindings/cuda.cpp": '#include "../cuda/ema_update.h"\n#include "bind.h"\n',
    "csrc/bindings/bind.h": "// binds\n",
    "fastssl/ops/ema_update.py": "from fastssl.ops import _check\n",
    "fastssl/ops/nt_xent.py": "from fastssl.ops._check import rows\n",
    "fastssl/ops/_check.py": "from fastssl.ops import _native\n",
    "fastssl/ops/_native.py": "import torch\n",
    "fastssl/ops/triton/nt_xent.py": "from fastssl.ops.triton import _dot\nimport triton\n",
    "fastssl/ops/triton/_dot.py": "from fastssl.ops.triton._load import load\n",
    "fastssl/ops/triton/_load.py": "load = 1\n",
}
CUDA, TRITON = "csrc/cuda/ema_update.cu", "fastssl/ops/triton/nt_xent.py"


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Sources of two kernels, and all that reads them told to look there."""
    for name, text in SOURCES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    for module in (ledger, stages, info):
        monkeypatch.setattr(module, "ROOT", tmp_path)
    monkeypatch.setattr(info, "PROVEN", tmp_path / "fastssl" / "gpu_proven.json")
    monkeypatch.setattr(info, "gpu_kernels", lambda: {"ema_update": {"cuda"}, "nt_xent": {"triton"}})
    return tmp_path


WHERE = {"device": H100, "torch": "2.11.0", "nvcc": "13.0.88", "results": "benchmarks/results/x/check"}
CHECKED = {"ema_update": {"calls": 8}, "nt_xent": {"calls": 12}}
PASSED = {
    "ema_update": {"passed": {"cuda": 31}, "failures": []},
    "nt_xent": {"passed": {"triton": 40}, "failures": []},
    "others": {"collected": 0},
}


def test_what_passed_is_in_the_ledger(repository: Path) -> None:
    found = ledger.updated({}, PASSED, CHECKED, WHERE)
    assert set(found) == {name for name in SOURCES if name.startswith(("csrc/cuda/", "fastssl/ops/triton/"))}
    assert not any("unproven" in entry for entry in found.values())
    entry = found[CUDA]
    assert (entry["device"], entry["tests"], entry["results"]) == (H100, "passed 31", "benchmarks/results/x/check")
    assert entry["sha256"] == ledger.sha256(CUDA)
    assert (entry["memcheck"], entry["torch"], entry["nvcc"]) == ("passed", "2.11.0", "13.0.88")
    early = ledger.updated({}, PASSED, {"ema_update": {"calls": 8}}, WHERE)
    assert ledger.proven(early) == [CUDA]
    assert early[TRITON]["unproven"] == "tests passed, memcheck not reached yet"
    assert ledger.proven(found) == [CUDA, TRITON]


def test_what_memcheck_skipped_is_not_proven(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The stage's own results, where compute-sanitizer is not installed, beside one of where it is."""
    skipped: dict[str, Any] = {}
    monkeypatch.setattr(stages, "sanitizer", lambda: None)
    stages.memcheck(["ema_update"], 10, lambda part, result: skipped.update({part: result}), False)
    found = ledger.updated({}, PASSED, {**CHECKED, **skipped}, WHERE)
    assert ledger.proven(found) == [TRITON]
    assert "sha256" not in found[CUDA]
    why = "tests passed, memcheck skipped: compute-sanitizer is not installed"
    assert found[CUDA]["unproven"] == why
    date = found[CUDA]["date"]
    assert f"| `{CUDA}` | **unproven**: {why} | {H100}, {date} |" in publish.proven_table(found)
    assert f"unproven, {why} ({H100}, {date}): ema_update (CUDA)" in info.gpu_sentence(ledger.recorded(found))
    assert ledger.proven(ledger.updated(found, PASSED, CHECKED, WHERE)) == [CUDA, TRITON]


@pytest.mark.parametrize(
    ("others", "why"),
    [
        ({"failures": ["t::a", "t::b"], "failed": "2 tests"}, "2 tests of no single op failed"),
        ({"failed": "words\nSegmentation fault"}, "tests of no single op failed: Segmentation fault"),
        (None, "its tests passed, those of no single op not reached yet"),
    ],
)
def test_without_the_tests_of_no_single_op_no_kernel_is_proven(
    repository: Path, others: dict[str, Any] | None, why: str
) -> None:
    """They are of what every kernel is called by."""
    tests = {op: result for op, result in PASSED.items() if op != ledger.OTHERS}
    before = ledger.updated({}, PASSED, CHECKED, WHERE)
    after = ledger.updated(before, tests if others is None else {**tests, ledger.OTHERS: others}, CHECKED, WHERE)
    assert ledger.proven(after) == []
    assert after[CUDA]["unproven"] == after[TRITON]["unproven"] == why
    assert ledger.updated(before, {"others": others or {}}, {}, WHERE) == before  # no kernel was run
    assert ledger.proven(ledger.updated(after, PASSED, CHECKED, WHERE)) == [CUDA, TRITON]


COMMENT = {".py": "#", ".txt": "#"}
OF_BOTH = ("fastssl/ops/_check.py", "fastssl/ops/_native.py")


@pytest.mark.parametrize("changed", SOURCES)
def test_a_kernel_is_proven_until_something_changes_that_it_takes_to_call_it(repository: Path, changed: str) -> None:
    """The kernel, what it includes or imports, the bindings, the op's own file and what that imports."""
    found = ledger.updated({}, PASSED, CHECKED, WHERE)
    (repository / changed).write_text(f"{SOURCES[changed]}{COMMENT.get(Path(changed).suffix, '//')} said otherwise\n")
    by_text = changed.startswith(("csrc/cuda/", "fastssl/ops/triton/"))
    assert bool(ledger.unproven(found)) == by_text  # of a kernel's file a comment counts too
    (repository / changed).write_text(f"{SOURCES[changed]}x = 2\n")
    triton = changed in OF_BOTH or "nt_xent" in changed or "triton" in changed
    cuda = changed in OF_BOTH or not triton
    assert ledger.unproven(found) == [*[CUDA] * cuda, *[TRITON] * triton]
    now = ledger.completed(found)
    for path in ledger.unproven(found):
        assert now[path]["unproven"] == f"changed since: {changed}"
        assert now[path]["device"] == H100
    (repository / changed).write_text(SOURCES[changed])
    assert ledger.completed(now) == found


def test_a_new_import_of_an_op_is_a_change_too(repository: Path) -> None:
    found = ledger.updated({}, PASSED, CHECKED, WHERE)
    (repository / "fastssl/ops/_new.py").write_text("x = 1\n")
    (repository / "fastssl/ops/nt_xent.py").write_text("from fastssl.ops import _new, _check\n")
    assert ledger.completed(found)[TRITON]["unproven"] == "changed since: fastssl/ops/_new.py, fastssl/ops/nt_xent.py"


def test_each_kernels_sources_here_are_found() -> None:
    for op, backend in ledger.kernels():
        found = set(ledger.uses(op, backend))
        assert {f"fastssl/ops/{op}.py", "fastssl/ops/_backend.py", "fastssl/ops/_native.py"} <= found
        assert (set(ledger.BINDINGS) <= found) == (backend == "cuda")
    assert {"csrc/shared/views.h", "csrc/shared/shared.h", "csrc/cuda/augment.h"} <= set(ledger.uses("augment", "cuda"))
    assert "csrc/cuda/augment.h" not in ledger.uses("ema_update", "cuda")  # though the bindings include it
    assert "fastssl/ops/triton/_contrast.py" in ledger.uses("clip_loss", "triton")


def test_what_failed_is_unproven_and_what_did_not_run_keeps_its_entry(repository: Path) -> None:
    found = ledger.updated({}, PASSED, CHECKED, WHERE)
    assert ledger.updated(found, {}, {}, WHERE) == found
    failed = {"ema_update": {"passed": {"cuda": 30}, "failures": ["test: it differs"], "failed": "1 tests"}}
    after = ledger.updated(found, failed, {}, WHERE)
    assert ledger.proven(after) == [TRITON]
    assert (after[CUDA]["unproven"], after[CUDA]["device"]) == ("1 tests failed", H100)
    skipped = {"ema_update": {"passed": {}, "skipped": 31, "failures": []}}
    assert ledger.proven(ledger.updated(found, skipped, {}, WHERE)) == [TRITON]
    unsafe = ledger.updated({}, PASSED, {**CHECKED, "nt_xent": {"failed": "Invalid __global__ read"}}, WHERE)
    assert ledger.proven(unsafe) == [CUDA]
    assert unsafe[TRITON]["unproven"] == "memcheck failed"


def test_info_tells_of_each_kernel_whether_it_is_proven(repository: Path) -> None:
    assert info.gpu_sentence(info.gpu_checks()) == "not yet run on a GPU: ema_update (CUDA), nt_xent (Triton)"
    found = ledger.updated({}, {op: PASSED[op] for op in ("nt_xent", "others")}, CHECKED, WHERE)
    info.PROVEN.write_text(json.dumps(ledger.recorded(found)))
    date = found[TRITON]["date"]
    checked = f"checked on {H100} on {date}: nt_xent (Triton); not yet run on a GPU: ema_update (CUDA)"
    assert info.gpu_sentence(info.gpu_checks()) == checked
    assert info.facts()["GPU kernels"] == checked
    (repository / "fastssl/ops/triton/_dot.py").write_text("load = 2\n")
    changed = f"unproven, changed since it was checked ({H100}, {date}): nt_xent (Triton)"
    assert info.gpu_sentence(info.gpu_checks()) == f"{changed}; not yet run on a GPU: ema_update (CUDA)"
    assert info.gpu_sentence(ledger.recorded(found)).startswith(changed)
    failed = ledger.updated(found, {"nt_xent": {"failures": ["a", "b"]}}, {}, WHERE)
    told = f"unproven, 2 tests failed ({H100}, {date}): nt_xent (Triton)"
    assert info.gpu_sentence(ledger.recorded(failed)).startswith(told)


def test_a_kernel_whose_tests_have_changed_is_told_as_proven_by_those_of_then(repository: Path) -> None:
    found = ledger.updated({}, PASSED, CHECKED, WHERE)
    date = found[CUDA]["date"]
    told = info.gpu_sentence(ledger.recorded(found, {"ema_update"}))
    checked = f"checked on {H100} on {date}"
    assert told == f"{checked} by tests that have changed since: ema_update (CUDA); {checked}: nt_xent (Triton)"
    *_, cuda, triton = publish.proven_table(found, {"ema_update"}).splitlines()
    proven = "proven: tests passed 31, memcheck passed, by tests that have changed since"
    assert cuda == f"| `{CUDA}` | {proven} | {H100}, {date} |"
    assert "since" not in triton


def test_a_package_built_of_other_kernels_than_were_checked_is_told(repository: Path) -> None:
    """Their sources do not lie beside it: its build has recorded them."""
    found = ledger.updated({}, PASSED, CHECKED, WHERE)
    info.PROVEN.write_text(json.dumps(ledger.recorded(found)))
    built = {path: ledger.sha256(path) for path in SOURCES if path.startswith(("csrc", "CMakeLists"))}
    shutil.rmtree(repository / "csrc")
    (repository / "CMakeLists.txt").unlink()
    changed = f"unproven, changed since it was checked ({H100}, {found[CUDA]['date']}): ema_update (CUDA)"
    for sources, is_told in ((built, False), ({**built, CUDA: "edited"}, True), ({}, True)):
        (repository / "fastssl" / "_build.json").write_text(json.dumps({"cuda": "built", "sources": sources}))
        assert (changed in info.gpu_sentence(info.gpu_checks())) == is_told


def test_performance_has_a_row_for_each_kernels_file(repository: Path) -> None:
    found = ledger.updated({}, {op: PASSED[op] for op in ("nt_xent", "others")}, CHECKED, WHERE)
    date = found[TRITON]["date"]
    *_, cuda, triton = publish.proven_table(found).splitlines()
    assert cuda == f"| `{CUDA}` | **unproven**: not yet run on a GPU |  |"
    assert triton == f"| `{TRITON}` | proven: tests passed 40, memcheck passed | {H100}, {date} |"


def test_readme_and_info_tell_what_the_ledger_says() -> None:
    readme = (ROOT / "README.md").read_text()
    assert publish.with_gpu_sentence(readme) == readme, "run python -m benchmarks.publish"
    found = ledger.read()
    assert set(found) == set(ledger.files()), "run python -m benchmarks.publish"
    assert found == ledger.completed(found), "run python -m benchmarks.publish"
    assert json.loads(info.PROVEN.read_text()) == publish.recorded(found), "run python -m benchmarks.publish"
    performance = (publish.DOCS / "performance.md").read_text()
    assert publish.proven_table(found, check.retested(found)) in performance, "run python -m benchmarks.publish"
    for path, entry in found.items():
        assert "unproven" in entry or {"sha256", "device", "date", "tests", "results"} <= entry.keys(), path


def test_the_ledger_claims_what_the_adopted_results_say() -> None:
    found = ledger.read()
    for op, backend in ledger.kernels():
        entry = found[ledger.FILES[backend].format(op)]
        if "sha256" not in entry:
            continue
        tests, memcheck = (
            json.loads((ROOT / entry["results"] / f"{stage}.json").read_text()) for stage in ("tests", "memcheck")
        )
        assert tests["subject"]["device"] == memcheck["subject"]["device"] == entry["device"]
        passed = ledger.verdict(op, backend, tests["parts"], memcheck["parts"])
        assert (entry["tests"], entry["memcheck"]) == (f"passed {passed}", "passed"), op


def test_a_checks_results_are_adopted(repository: Path, tmp_path: Path) -> None:
    subject = {"device": H100, "dry_run": False, "torch": "2.11.0", "triton": "3.6.0", "nvcc": "13.0.88"}
    row = {
        "op": "nt_xent",
        "shape": "n=1",
        "dtype": "float32",
        "provider": "fastssl",
        "median": 0.01,
        "best_rival": None,
    }
    run = {"machine": H100, "processor": "A CPU", "date": "2026-01-01", "commit": "then"}
    parts = {
        "nt_xent n=1 float32": {"op": "nt_xent", "rows": [row], "sources": "others"},
        "ema_update": {"failed": "out of memory", "sources": "others"},
    }
    out, of = tmp_path / "out", {stage.name: stage for stage in check.STAGES}
    now = {op: {**result, "sources": check.sources(of["tests"], op)} for op, result in PASSED.items()}
    now["nt_xent"]["sources"] = now[ledger.OTHERS]["sources"] = "others"  # the latter's count all the same
    checked = {op: {**result, "sources": check.sources(of["memcheck"], op)} for op, result in CHECKED.items()}
    check.write(out / "benchmarks.json", {"subject": subject, "run": run, "parts": parts})
    check.write(out / "tests.json", {"subject": subject, "run": {}, "parts": now})
    check.write(out / "memcheck.json", {"subject": subject, "run": {}, "parts": checked})
    written = {str(path.relative_to(repository)) for path in check.adopt(out, repository)}
    folder = "benchmarks/results/nvidia-h100-80gb-hbm3"
    stages_of = {f"{folder}/check/{stage}.json" for stage in ("benchmarks", "memcheck", "tests")}
    assert written == {f"{folder}/nt_xent.json", *stages_of, "benchmarks/gpu_ledger.json"}
    (machine,) = summary.machines(repository / "benchmarks" / "results")
    assert (machine.name, [report.op for report in machine.reports]) == (H100, ["nt_xent"])
    assert machine.reports[0].run["commit"] == "then"  # of sources that are not these
    found = ledger.read(repository / "benchmarks" / "gpu_ledger.json")
    assert ledger.proven(found) == [CUDA]
    assert found[CUDA]["results"] == f"{folder}/check"
    assert check.retested(found) == set()
    (repository / "tests" / "ops").mkdir(parents=True)
    (repository / "tests" / "ops" / "test_nt_xent.py").write_text("# of another op\n")
    assert check.retested(found) == set()
    (repository / "tests" / "ops" / "test_ema_update.py").write_text("# stricter\n")
    assert check.retested(found) == {"ema_update"}
    with pytest.raises(UserError, match="no results of a check"):
        check.adopt(tmp_path / "nowhere", repository)
