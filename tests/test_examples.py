"""Every example runs by itself, and those that migrate give the losses that the other library gives."""

from __future__ import annotations

import difflib
import functools
import math
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from other_libraries import load_or_skip

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"
THEIRS = "lightly_simclr_before"  # which needs lightly
STEPS = 6
# each script, and what its last line says
SCRIPTS = {
    "distributed_simclr": r"6 steps on 128 drawings each, 128 in each of 1 processes",
    "facebook_moco": r"6 steps of MoCo v2; 768 of 4096 keys in the queue are drawings'",
    "lightly_moco": r"6 steps of MoCo.*saves memory_bank.bank \(4096, 128\), memory_bank.bank_ptr \(1,\)",
    "lightly_simclr": r"6 steps of SimCLR.*NTXentLoss came from fastssl.compat.lightly.loss",
    "open_clip_loop": r"6 steps; of 128 drawings, \d+ find their own caption first",
    "pml_simclr": r"6 steps on two views of 128 drawings each; NTXentLoss came from fastssl.compat.pml",
    "solo_simclr": r"6 steps of SimCLR on 3 views of 128 drawings each",
    "torch_dense": r"6 steps; classes by nearest neighbours: \d\d.\d% right with the averaged encoder's places",
    "torch_dino": r"6 steps; the teacher gives 512 drawings \d\d+ of 512 prototypes",
    "torch_simclr": r"6 steps; classes by nearest neighbours: \d\d.\d% right with the averaged encoder",
}
RISES = {"facebook_moco", "lightly_moco", "torch_dense", "torch_dino"}  # in the first steps, as their headers say

# of losses: their first difference is a rounding, and each step of training doubles it or so
SAME = 2e-4


def losses(said: str) -> list[float]:
    return [float(loss) for loss in re.findall(r"^step \d+: loss (\S+)$", said, re.MULTILINE)]


@functools.cache
def output(script: str, *launcher: str) -> str:
    """What a script prints in a process of its own."""
    command = [sys.executable, *launcher, str(EXAMPLES / f"{script}.py"), "--steps", str(STEPS)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def printed_here(path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    """What a script prints in this process, where the other libraries can be loaded."""
    monkeypatch.setattr(sys, "argv", [str(path), "--steps", str(STEPS)])
    with torch.random.fork_rng():
        runpy.run_path(str(path), run_name="__main__")
    return capsys.readouterr().out


def needs(*modules: str) -> None:
    for module in modules:
        load_or_skip(module)


@pytest.mark.parametrize("script", SCRIPTS)
def test_an_example_runs_alone_and_tells_what_it_did(script: str) -> None:
    said = output(script)
    found = losses(said)
    assert len(found) == STEPS
    assert all(math.isfinite(loss) for loss in found)
    assert script in RISES or found[-1] < found[0]
    assert re.match(SCRIPTS[script], said.splitlines()[-1])


def test_every_example_is_tested_and_in_the_readme() -> None:
    found = {path.stem for path in EXAMPLES.glob("*.py")}
    assert found == {*SCRIPTS, THEIRS}
    assert set(re.findall(r"\((\w+)\.py\)", (EXAMPLES / "README.md").read_text())) == found


def test_lightlys_loop_differs_in_one_line() -> None:
    before, after = ((EXAMPLES / f"{name}.py").read_text().splitlines() for name in (THEIRS, "lightly_simclr"))
    changed = [line for line in difflib.ndiff(before, after) if line[0] in "+-"]
    assert changed == ["- from lightly import loss, models", "+ from fastssl.compat.lightly import loss, models"]


def test_lightlys_loop_gives_the_same_losses_with_ours(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    needs("lightly.loss")
    theirs = printed_here(EXAMPLES / f"{THEIRS}.py", monkeypatch, capsys)
    assert "NTXentLoss came from lightly.loss" in theirs
    assert losses(output("lightly_simclr")) == pytest.approx(losses(theirs), rel=SAME)


@pytest.mark.parametrize(
    ("script", "ours", "theirs", "module"),
    [
        ("lightly_moco", "fastssl.compat.lightly", "lightly", "lightly.loss"),
        ("open_clip_loop", "fastssl.compat.open_clip", "open_clip.loss", "open_clip.loss"),
        ("pml_simclr", "fastssl.compat.pml", "pytorch_metric_learning.losses", "pytorch_metric_learning.losses"),
    ],
)
def test_the_others_give_the_losses_of_the_library_they_come_from(
    script: str,
    ours: str,
    theirs: str,
    module: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    needs(module)
    source = (EXAMPLES / f"{script}.py").read_text()
    assert source.count(f"from {ours} import") == 1
    (tmp_path / "before.py").write_text(source.replace(f"from {ours} import", f"from {theirs} import"))
    before = printed_here(tmp_path / "before.py", monkeypatch, capsys)
    assert losses(output(script)) == pytest.approx(losses(before), rel=SAME)


def test_two_processes_give_the_losses_of_one() -> None:
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    said = output("distributed_simclr", *launcher)
    assert "64 in each of 2 processes" in said
    assert losses(said) == pytest.approx(losses(output("distributed_simclr")), rel=SAME)
