"""Of which commit results are, and whether what they measure has changed since."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks import age, publish
from benchmarks.gpu import ledger
from benchmarks.summary import Machine, Measured, Report


@pytest.fixture(autouse=True)
def nothing_remembered() -> Iterator[None]:
    yield
    age.differing.cache_clear()


def report(op: str, commit: str = "abc", **row: Any) -> Report:
    ours = {"op": op, "shape": "n=1", "dtype": "float32", "provider": "fastssl", "best_rival": None, **row}
    times = {"median": 1.0, "p20": 1.0, "p80": 1.0, "times_faster_than": {}, "error_against_float64": None}
    return Report(op, {"commit": commit, "date": "2026-11-27"}, [Measured([{**ours, **times}])])


@pytest.mark.parametrize(
    ("op", "backend", "path"),
    [
        ("nt_xent", "cpu", "csrc/cpu/nt_xent.cpp"),
        ("nt_xent", "cpu", "csrc/cpu/pages.h"),  # by way of others
        ("nt_xent", "cpu", "fastssl/ops/_native.py"),
        ("nt_xent", "triton", "fastssl/ops/triton/nt_xent.py"),
        ("enqueue", "cuda", "csrc/cuda/enqueue.cu"),
        ("audio", "torch", "fastssl/data/wav.py"),
        ("audio", "torch", "csrc/cpu/augment.cpp"),
        ("mae_encoder", "cpu", "fastssl/ops/take_patches.py"),
        ("lightly", "cpu", "fastssl/compat/lightly/__init__.py"),
    ],
)
def test_what_is_measured_has_changed(op: str, backend: str, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(age, "differing", lambda commit: frozenset({path}))
    assert age.changed_since(report(op, backend=backend)) == [path]


@pytest.mark.parametrize(
    ("op", "backend", "path"),
    [
        ("nt_xent", "cpu", "csrc/cpu/enqueue.cpp"),
        ("nt_xent", "cpu", "fastssl/ops/triton/nt_xent.py"),
        ("nt_xent", "triton", "csrc/cpu/nt_xent.cpp"),
        ("audio", "torch", "csrc/cpu/nt_xent.cpp"),
        ("lightly", "cpu", "fastssl/data/wav.py"),
    ],
)
def test_what_others_measure_is_no_reason(op: str, backend: str, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(age, "differing", lambda commit: frozenset({path}))
    assert age.changed_since(report(op, backend=backend)) == []


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_git_says_what_differs_from_a_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def git(*words: str) -> str:
        who = ("-c", "user.name=a", "-c", "user.email=a@b.c")
        done = subprocess.run(["git", "-C", str(tmp_path), *who, *words], check=True, capture_output=True, text=True)
        return done.stdout.strip()

    for name in ("csrc/cpu/one.cpp", "fastssl/two.py", "docs/three.md"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("before")
    git("init")
    git("add", ".")
    git("commit", "-m", "all")
    commit = git("describe", "--always")
    monkeypatch.setattr(ledger, "ROOT", tmp_path)
    assert age.differing(f"{commit}-dirty") == frozenset()
    age.differing.cache_clear()
    for name in ("csrc/cpu/one.cpp", "docs/three.md"):
        (tmp_path / name).write_text("after")
    (tmp_path / "fastssl" / "two.py").write_text("before  # said otherwise")
    assert age.differing(commit) == {"csrc/cpu/one.cpp"}
    assert age.differing("0123456789") is None
    assert age.differing("") is None


def test_the_pages_say_of_which_commit_and_what_is_older(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = {"abc": frozenset({"csrc/cpu/tile.h", "csrc/cpu/nt_xent.cpp"}), "def-dirty": None}
    monkeypatch.setattr(age, "differing", found.__getitem__)
    reports = [report("nt_xent"), report("enqueue"), report("tiles", "def-dirty")]
    machine = Machine("a-machine", "A Machine", reports)
    assert age.commits(reports) == (
        "- Measured at commit abc (2026-11-27): nt_xent, enqueue; def-dirty (2026-11-27): tiles.\n"
        "- Older than the code they measure, which has changed since: nt_xent.\n"
        "- Of a commit that this checkout does not have: tiles.\n"
    )
    assert "has changed since: all of these.\n" in age.commits(reports[:1])
    page = publish.machine_page(machine, tmp_path)
    _, nt_xent, enqueue, tiles = page.split("## ")
    told = "- older than the code it measures: changed since are csrc/cpu/nt_xent.cpp, csrc/cpu/tile.h\n"
    assert told in nt_xent
    assert "changed since" not in enqueue
    assert "what has changed since is not known" in tiles


def test_few_of_many_files_are_named() -> None:
    assert age.told([f"{i}.h" for i in range(5)]).endswith("changed since are 0.h, 1.h, 2.h and 2 more")
