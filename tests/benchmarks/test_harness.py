"""The harness on a case of its own: what its rows say, and that a rival which fails does not end a run."""

from __future__ import annotations

import itertools
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from benchmarks import harness, rivals, where
from benchmarks.floors import Floors
from benchmarks.harness import OURS, Case, Work
from benchmarks.models import mae_encoder
from fastssl import ops

FLOORS = Floors(
    fma_gflops=100.0,
    bfloat16_gflops=150.0,
    gemm_gflops=80.0,
    exp_billions_per_second=2.0,
    torch_exp_billions_per_second=1.0,
    bandwidths={1: {"copy": 200.0, "read": 100.0}, 256: {"copy": 10.0, "read": 20.0}},
)


def ours() -> Work:
    z = torch.eye(8, 4)
    return lambda: (ops.nt_xent(z, z, temperature=1.0),)


def half() -> Work:
    return lambda: (torch.tensor(0.5),)


def missing() -> Work:
    raise rivals.NotInstalledError("lightly is not installed")


def fails_when_called() -> Work:
    def work() -> None:
        raise MemoryError("too much\nwith a second line")

    return work


def case(**changes: object) -> Case:
    others = {"half": half, "half again": half, "missing": missing, "failing": fails_when_called}
    providers = {OURS: ours, f"{OURS}, otherwise": ours, **others}
    return Case(**{"op": "nt_xent", "shape": "n=8", "dtype": "float32", "providers": providers, **changes})  # type: ignore[arg-type]


def test_a_rival_that_fails_has_a_row_that_says_so() -> None:
    rows = {row["provider"]: row for row in harness.measure(case(), FLOORS)}
    assert list(rows) == [OURS, f"{OURS}, otherwise", "half", "half again", "missing", "failing"]
    assert rows["missing"]["failed"] == "NotInstalledError: lightly is not installed"
    assert rows["failing"]["failed"] == "MemoryError: too much"
    assert set(rows[OURS]["times_faster_than"]) == {f"{OURS}, otherwise", "half", "half again"}
    assert rows[OURS]["best_rival"] == "half"  # neither our own code nor a second timing is a rival


def test_a_failure_of_ours_ends_the_run() -> None:
    with pytest.raises(MemoryError):
        harness.measure(case(providers={OURS: fails_when_called, "half": half}), None)


def test_rows_say_what_ran_and_how_near_the_floor() -> None:
    counted = case(operations=3e6, exponentials=2e6, recompute=1e6, exact=lambda: (torch.tensor(1.0).double(),))
    found, _, rival, *_ = harness.measure(counted, FLOORS)
    assert found["backend"] == "cpu"
    assert rival["backend"] is None
    assert rival["error_against_float64"] == 0.5
    assert found["floor"] == pytest.approx(1e3 * (3e6 / 100e9 + 2e6 / 2e9))
    assert found["percent_of_floor"] == pytest.approx(100 * found["floor"] / found["median"], rel=0.01)
    assert found["gflops"] == pytest.approx(3 / found["median"], rel=0.05)
    assert found["gflops_with_recompute"] == pytest.approx(4 / found["median"], rel=0.05)
    assert found["percent_of_peak"] == pytest.approx(4 / found["median"], rel=0.05)  # of 100 GFLOP/s
    assert "gflops_with_recompute" not in rival
    assert found["p20"] <= found["median"] <= found["p80"]
    assert found["samples"] == harness.SAMPLES


def test_slow_works_have_fewer_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness, "timed", lambda work: work())
    taken = harness.interleaved({"fast": lambda: 0.001, "slow": lambda: 3.0, "very slow": lambda: 100.0})
    assert [len(seconds) for seconds in taken.values()] == [harness.SAMPLES, harness.FEWEST, harness.FEWEST]


def test_providers_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[str] = []
    makers = {name: (lambda name=name: lambda: called.append(name)) for name in (OURS, "other")}
    monkeypatch.setattr(harness, "errors", lambda case, works: dict.fromkeys(works))
    monkeypatch.setattr(harness, "backend", lambda work: "none")
    harness.measure(case(providers=makers), None)
    changes = sum(a != b for a, b in itertools.pairwise(called))
    assert changes == 2 * harness.SAMPLES + 1  # each is warmed up before


def test_the_floor_is_the_longer_of_moving_and_computing() -> None:
    assert FLOORS.seconds(100e9, 0, 0) == pytest.approx(1)
    assert FLOORS.seconds(100e9, 0, 2e9) == pytest.approx(2)
    assert FLOORS.seconds(150e9, 0, 2e9, "bfloat16") == pytest.approx(2)
    assert FLOORS.seconds(100e9, 10e9, 2e9) == pytest.approx(2)
    assert FLOORS.seconds(100e9, 60e9, 0) == pytest.approx(3)
    assert FLOORS.seconds(0, 200e3, 0) == pytest.approx(1e-6)  # what stays in a cache moves faster


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_every_case_is_unique_and_has_a_rival(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(where, "_device", torch.device(device))
    names = [case.name for case in harness.cases()]
    assert len(names) == len(set(names))
    for each in harness.cases():
        assert next(iter(each.providers)) == OURS
        assert len(each.providers) > 1


def test_maes_encoder_computes_the_visible_patches_alone() -> None:
    """The tokens of the masked encoder: the class token and a quarter of the patches; and far fewer operations."""
    masked, whole = (mae_encoder.encoder_work("vit_tiny", 1, torch.float32, masked=each)() for each in (True, False))
    assert masked[0].shape == (1, 1 + 49, 192)
    assert whole[0].shape == (1, 1 + 196, 192)
    counts = [mae_encoder.operations("vit_base", 1, masked=each) for each in (True, False)]
    assert counts[1] / counts[0] > 3.5
    assert counts[1] == pytest.approx(6 * 17.6e9, rel=0.02)  # the published multiply-adds of ViT-B/16, each two, thrice


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_results_that_a_run_has_written_leave_its_commit_as_it_is(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def git(*words: str) -> None:
        who = ("-c", "user.name=a", "-c", "user.email=a@b.c")
        subprocess.run(["git", "-C", str(tmp_path), *who, *words], check=True, capture_output=True)

    for name in ("benchmarks/results/op.json", "docs/performance.md", "fastssl/op.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("before")
    git("init")
    monkeypatch.chdir(tmp_path / "benchmarks")
    assert harness.commit() == ""
    git("add", ".")
    git("commit", "-m", "all")
    clean = harness.commit()
    assert clean.isalnum()
    (tmp_path / "benchmarks/results/op.json").write_text("after")
    (tmp_path / "docs/performance.md").write_text("after")
    assert harness.commit() == clean
    (tmp_path / "fastssl/op.py").write_text("after")
    assert harness.commit() == f"{clean}-dirty"
