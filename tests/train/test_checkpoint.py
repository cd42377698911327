from __future__ import annotations

import pickle
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fastssl.errors import UserError
from fastssl.train import checkpoint as checkpoints
from fastssl.train.checkpoint import Checkpoint

STATE = Checkpoint(
    config={"epochs": 3, "views": None},
    model={"weight": torch.arange(6.0).view(2, 3)},
    optimizer={"state": {0: {"momentum_buffer": torch.ones(2, 3)}}, "param_groups": [{"lr": 0.1, "params": [0]}]},
    epoch=2,
    step=1,
    seconds=1.5,
    rng={"cpu": torch.get_rng_state()},
    data="2 images, 00",
    environment={"torch": "2"},
)


def test_everything_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    checkpoints.save(STATE, path)
    loaded = checkpoints.load(path)
    assert torch.equal(loaded.model["weight"], STATE.model["weight"])
    assert torch.equal(loaded.rng["cpu"], STATE.rng["cpu"])
    assert loaded.optimizer["param_groups"] == STATE.optimizer["param_groups"]
    assert replace(loaded, model={}, optimizer={}, rng={}) == replace(STATE, model={}, optimizer={}, rng={})


def test_finished_when_every_epoch_is_done() -> None:
    assert not STATE.finished
    assert replace(STATE, epoch=3, step=0).finished


def test_a_missing_checkpoint_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="give the folder of a run"):
        checkpoints.load(tmp_path / "checkpoint.pt")


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.touch, (Path("ran-code"),)


@pytest.mark.parametrize("what", ["cut off", "not a checkpoint", "code", "empty"])
def test_a_damaged_or_foreign_file_is_refused(what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "checkpoint.pt"
    checkpoints.save(STATE, path)
    if what == "cut off":
        path.write_bytes(path.read_bytes()[:-200])
    elif what == "not a checkpoint":
        path.write_text("hello")
    elif what == "code":
        path.write_bytes(pickle.dumps({"format": 1, "evil": Evil()}, protocol=2))
    else:
        path.write_bytes(b"")
    with pytest.raises(UserError, match="cannot be read as a checkpoint"):
        checkpoints.load(path)
    assert not Path("ran-code").exists()


def test_another_format_is_named(tmp_path: Path) -> None:
    checkpoints.save(replace(STATE, format=99), tmp_path / "checkpoint.pt")
    with pytest.raises(UserError, match="checkpoint format 99, this version reads 1"):
        checkpoints.load(tmp_path / "checkpoint.pt")


def test_a_full_disk_keeps_the_old_checkpoint(
    tmp_path: Path, limit_files: Callable[[int], AbstractContextManager[None]]
) -> None:
    path = tmp_path / "checkpoint.pt"
    checkpoints.save(STATE, path)
    larger = replace(STATE, model={"weight": torch.zeros(100_000)})
    with limit_files(50_000), pytest.raises(UserError, match=r"cannot write .*checkpoint\.pt: .*free some space"):
        checkpoints.save(larger, path)
    assert list(checkpoints.load(path).model["weight"].shape) == [2, 3]
    assert [file.name for file in tmp_path.iterdir()] == ["checkpoint.pt"]
