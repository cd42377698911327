"""WebDataset shards as the commands use them."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
import torch
from cli_helpers import QUICK, Run
from image_files import encode, noise
from shard_files import write_shard

from fastssl.train import checkpoint as checkpoints
from fastssl.train.folder import RunFolder
from fastssl.train.loop import MetricsLog

pytest.importorskip("webdataset", reason="the package webdataset is not installed")


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Three shards of eight images, one of which cannot be read."""
    for i in range(3):
        images = {f"{k}.png": encode(noise(20, 24, seed=8 * i + k)) for k in range(8)}
        write_shard(tmp_path / "shards" / f"{i:02}.tar", images | ({"3.png": b"no image"} if i == 1 else {}))
    return tmp_path / "shards"


def test_a_method_is_trained_on_a_folder_of_shards(shards: Path, run: Run) -> None:
    outcome = run("pretrain", "simclr", "--data", "shards", "--out", "run", *QUICK)
    assert outcome.code == 0
    assert "shards: 24 images for training, no labels" in outcome.err
    assert "skipped 1 that cannot be read" in outcome.err
    assert outcome.err.count("3.png") == outcome.err.count("'01.tar/3.png' cannot be read (not an image") == 1
    told = "not scored: no labels are read from shards: give labelled images to fastssl evaluate run --data\n"
    assert told in outcome.out
    page = Path("run/report.html").read_text()
    assert "No labels are read from shards, so there is nothing to score against: give labelled images" in page
    assert "into a folder" not in page
    assert "saw 24 images of" in page
    assert "01.tar/3.png: not an image" in page
    assert "1 file skipped" in page
    again = run("report", "run")
    assert again.code == 0
    assert again.err.count("3.png") == again.err.count("can be read): the report leaves it out\n") == 1


def test_a_run_on_shards_is_scored_on_other_images(
    shards: Path, run: Run, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fastssl.report._NEEDS", ("no_such_module",))  # the report is not what is tested
    assert run("pretrain", "simclr", "--data", "shards", "--out", "run", *QUICK).code == 0
    told = (
        "the run was trained on the shards 'shards', of which no labels are read to score its encoder on: give labelled"
    )
    assert told in run("evaluate", "run").error()
    assert "'shards' are shards, which have no labels to score by" in run("evaluate", "run", "--data", "shards").error()
    assert "are shards, which are for training alone" in run("embed", "run", "shards", "--out", "f.npz").error()
    assert run("evaluate", "run", "--data", photos).code == 0


def test_a_stopped_run_on_shards_resumes_to_the_same_bits(
    shards: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fastssl.report._NEEDS", ("no_such_module",))  # the report is not what is tested
    words = ["pretrain", "simclr", "--data", "shards/{00..02}.tar", *QUICK]
    assert run(*words, "--out", "whole").code == 0
    write = MetricsLog.write

    def stop(log: MetricsLog, row) -> None:  # type: ignore[no-untyped-def]
        write(log, row)
        if row.step == 2:
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(MetricsLog, "write", stop)
        assert run(*words, "--out", "stopped").code == 130
    assert run("pretrain", "--out", "stopped", "--resume").code == 0
    whole, stopped = (checkpoints.load(RunFolder(Path(name)).checkpoint) for name in ("whole", "stopped"))
    assert whole.data == stopped.data
    assert all(torch.equal(whole.model[name], stopped.model[name]) for name in whole.model)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--engine", "native"], "'shards' are shards, which the engine 'native' does not read: leave --engine out"),
        (["--data", "none/{0..3}.tar"], "none of the 4 files is there of 'none/{0..3}.tar'"),
        (["--data", "shards/{00..02.tar"], "has a brace without its other half"),
        (["--max_skipped", "2"], "max_skipped is a share of the files, from 0 to 1; got 2.0"),
    ],
)
def test_what_cannot_be_used_is_refused(words: list[str], message: str, shards: Path, run: Run) -> None:
    assert message in run("pretrain", "simclr", "--data", "shards", *QUICK, *words).error()
    assert not Path("runs").exists()


@pytest.mark.parametrize("engine", ["native", "stream", "dali"])
def test_one_option_says_how_many_files_may_be_unreadable(
    engine: str, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if engine == "dali":
        pytest.importorskip("nvidia.dali", reason="NVIDIA DALI is not installed: pip install 'fastssl[dali]'")
    monkeypatch.setattr("fastssl.report._NEEDS", ("no_such_module",))
    (tmp_path / "photos").mkdir()
    for i in range(20):
        (tmp_path / "photos" / f"{i:02}.png").write_bytes(b"no image" if i in (3, 8, 9) else encode(noise(seed=i)))
    words = ["pretrain", "--data", "photos", "--engine", engine, *QUICK]
    said = run(*words, "--out", "strict").error()
    assert "too many unreadable files: 3 so far, 2 of 20 allowed" in said
    more = "repair them, or allow a larger share by --max_skipped (now 0.1)"
    assert said.endswith(f"{more}; go on with: fastssl pretrain --out strict --resume --max_skipped SHARE")
    outcome = run(*words, "--out", "lenient", "--max_skipped", "0.2")
    assert outcome.code == 0
    assert "skipped 3 that cannot be read" in outcome.err
    assert run(*words, "--out", "strict", "--overwrite").error().endswith(more)
    assert run("pretrain", "--out", "strict", "--resume", "--max_skipped", "0.2").code == 0


def test_views_of_shards_are_drawn_and_engines_are_not_measured_on_them(shards: Path, run: Run) -> None:
    outcome = run("views", "shards", "--image_size", "16", "--rows", "30")
    assert outcome.code == 0
    assert Path("views.png").stat().st_size > 0
    assert outcome.err.count("3.png") == outcome.err.count("  01.tar/3.png: not an image") == 1
    assert "'shards' are shards, which one engine alone reads" in run("bench-data", "shards").error()
