"""Methods with a teacher from the command line: schedules as options and columns, pictures, warnings of a collapse."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from cli_helpers import QUICK, Run
from safetensors.torch import load_file

from fastssl.train import log
from fastssl.train.folder import RunFolder
from fastssl.train.health import CollapseWatch
from fastssl.train.trained import open_run

DINO = [
    *("pretrain", "dino", *QUICK, "--patch_size", "4", "--depth", "2", "--plan.local.views", "2"),
    *("--dino.prototypes", "32", "--dino.momentum.start", "0.9", "--dino.teacher_temp.epochs", "1"),
]


@pytest.fixture(scope="module")
def trained(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from fastssl.cli import main

    folder = tmp_path_factory.mktemp("runs") / "dino"
    assert main([*DINO, "--data", str(photos), "--out", str(folder)]) == 0
    return folder


def test_schedules_are_columns(trained: Path) -> None:
    rows = log.read(RunFolder(trained).metrics)
    assert rows[0].extra["momentum"] == 0.9
    assert [row.extra["teacher_temp"] for row in rows] == pytest.approx([0.04, 0.05, 0.06, 0.07, 0.07, 0.07])
    assert [row.extra["train_prototypes"] for row in rows] == [0, 0, 0, 1, 1, 1]
    decay = [row.extra["weight_decay"] for row in rows]
    assert decay[0] == pytest.approx(0.04)
    assert decay == sorted(decay)
    assert {"feature_std", "feature_rank", "teacher_entropy", "teacher_kl", "teacher_information"} <= rows[
        0
    ].extra.keys()


def test_a_schedule_may_not_change_on_the_way(trained: Path, run: Run) -> None:
    changed = run("pretrain", "--out", trained, "--resume", "--dino.momentum.start", "0.8")
    assert "dino.momentum.start: 0.9 -> 0.8" in changed.error()
    assert run("pretrain", "--out", trained, "--resume").code == 0


def test_the_teacher_is_what_is_used(trained: Path, run: Run) -> None:
    opened = open_run(trained)
    teacher, student = opened.method.kept.state_dict(), opened.method.encoder.state_dict()
    assert not torch.equal(teacher["blocks.0.mlp.fc1.weight"], student["blocks.0.mlp.fc1.weight"])
    assert run("export", trained, "--out", "encoder.safetensors").code == 0
    weights = load_file("encoder.safetensors")
    assert all(torch.equal(value, teacher[name]) for name, value in weights.items())
    assert opened.encoder.blocks[0].mlp.fc1.weight.requires_grad  # to be fine-tuned
    assert run("evaluate", trained).code == 0


def test_attention_is_drawn(trained: Path) -> None:
    assert "head 1" in (trained / "report.html").read_text(encoding="utf-8")


def test_a_schedule_is_an_option_in_the_help(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run("pretrain", "dino", "--help")
    told = capsys.readouterr().out
    assert "--dino.momentum.start" in told
    assert "--dino.teacher_temp.shape" in told


def test_a_collapse_is_told(photos: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    told = "training has collapsed at step 2: all is one"
    monkeypatch.setattr(CollapseWatch, "warning", lambda _self, step, _signs: told if step == 2 else None)
    outcome = run("pretrain", "byol", *QUICK, "--data", photos, "--out", "out")
    assert outcome.code == 0
    assert outcome.err.count(f"warning: {told}") == 1


def test_a_number_is_no_schedule(photos: Path, run: Run) -> None:
    outcome = run("pretrain", "byol", *QUICK, "--data", photos, "--byol.momentum", "0.9")
    assert "set --byol.momentum.start, --byol.momentum.end" in outcome.error()
