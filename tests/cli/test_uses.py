"""The commands that use a finished run: evaluate, embed, export, report."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from cli_helpers import Run, write_images
from safetensors.torch import load_file
from wav_files import ramp, write_wav


@pytest.fixture
def copy(done: Path, tmp_path: Path) -> Path:
    """A run that may be written to."""
    return Path(shutil.copytree(done, tmp_path / "copy"))


def test_evaluate_repeats_the_scores_of_the_run(copy: Path, run: Run) -> None:
    before = (copy / "scores.json").read_text()
    (copy / "scores.json").unlink()
    outcome = run("evaluate", copy)
    assert outcome.code == 0
    assert "random initialisation" in outcome.out
    assert (copy / "scores.json").read_text() == before


def test_evaluate_on_other_images_keeps_the_own_scores(copy: Path, run: Run, tmp_path: Path) -> None:
    before = (copy / "scores.json").read_text()
    write_images(tmp_path / "other", {"cat": 5, "dog": 5})
    assert run("evaluate", copy, "--data", "other").code == 0
    assert (copy / "scores-other.json").exists()
    assert (copy / "scores.json").read_text() == before


def test_evaluate_may_be_told_to_skip_more(copy: Path, run: Run, tmp_path: Path) -> None:
    folder = write_images(tmp_path / "torn", {"ant": 8, "bee": 8})
    for name in ("ant/0.png", "ant/1.png", "bee/0.png"):
        (folder / name).write_bytes(b"not a picture")
    said = run("evaluate", copy, "--data", "torn").error()
    assert said.endswith("repair them, or allow a larger share by --max_skipped (now 0.1)")
    assert run("evaluate", copy, "--data", "torn", "--max_skipped", "0.2").code == 0
    assert "max_skipped is a share of the files" in run("evaluate", copy, "--max_skipped", "2").error()


def test_evaluate_needs_labels(copy: Path, run: Run, tmp_path: Path) -> None:
    write_images(tmp_path / "flat", {"": 5})
    assert "flat has no labels" in run("evaluate", copy, "--data", "flat").error()


def test_embed_writes_a_row_for_every_image(done: Path, photos: Path, run: Run) -> None:
    assert "30 images x 64 features: f.npz" in run("embed", done, photos, "--out", "f.npz").out
    assert run("embed", done, photos, "--out", "f.csv").code == 0
    with np.load("f.npz") as table:
        assert table["features"].shape == (30, 64)
        assert list(table["classes"]) == ["cat", "dog", "owl"]
        assert np.bincount(table["labels"]).tolist() == [10, 10, 10]
    assert len(Path("f.csv").read_text().splitlines()) == 31


def test_a_single_image_is_told_of_as_one(
    done: Path, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FASTSSL_CACHE", "kept")
    write_images(tmp_path / "single", {"": 1})
    outcome = run("embed", done, "single", "--out", "f.npz")
    assert "1 image x 64 features" in outcome.out
    assert "keeping 1 image of 16 x 16" in outcome.err
    assert "1 set of images" in " ".join(run("info").out.split())


def test_embed_names_what_it_skips(done: Path, run: Run, tmp_path: Path) -> None:
    folder = write_images(tmp_path / "some", {"": 5})
    (folder / "broken.png").write_bytes(b"not a picture")
    outcome = run("embed", done, "some", "--out", "f.npz")
    assert "5 images x 64 features" in outcome.out
    assert "skipped 1 that cannot be read" in outcome.err
    assert "broken.png: " in outcome.err


@pytest.mark.parametrize(
    "words",
    [
        ["views", "tones"],
        ["bench-data", "tones"],
        ["embed", "RUN", "tones", "--out", "f.npz"],
        ["evaluate", "RUN", "--data", "tones"],
    ],
)
def test_commands_that_take_images_say_what_else_they_are_given(words: list[str], done: Path, run: Run) -> None:
    write_wav(Path("tones/a.wav"), ramp(500))
    said = run(*(done if word == "RUN" else word for word in words)).error()
    assert said == f"error: 'tones' holds recordings, and {words[0]} takes images: give it images"


def test_export_writes_torchvisions_names(done: Path, run: Run) -> None:
    assert run("export", done, "--out", "e.safetensors").code == 0
    names = load_file("e.safetensors").keys()
    assert {"conv1.weight", "bn1.running_mean", "layer4.1.bn2.bias"} <= names
    assert not [name for name in names if name.startswith(("encoder.", "head.", "fc."))]


def test_report_is_drawn_again(copy: Path, run: Run) -> None:
    before = (copy / "report.html").read_text()
    (copy / "report.html").unlink()
    assert run("report", copy).code == 0
    assert (copy / "report.html").read_text() == before


def test_damaged_files_of_a_run_are_named(copy: Path, run: Run) -> None:
    (copy / "scores.json").write_text("{")
    assert "scores.json is damaged" in run("report", copy).error()
    (copy / "scores.json").unlink()
    (copy / "metrics.jsonl").write_text("{\n")
    assert "metrics.jsonl is damaged" in run("report", copy).error()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["evaluate", "nowhere"], "nowhere holds no finished or interrupted run"),
        (["report", "nowhere"], "nowhere holds no finished or interrupted run"),
        (["embed", "RUN", "nowhere/", "--out", "f.npz"], "no file or folder 'nowhere/'"),
        (["embed", "RUN", "nowhere/", "--out", "f.txt"], "does not end in .npz or .csv"),
        (["embed", "RUN", "nowhere/"], "--out is missing: fastssl embed RUN DATA --out"),
        (["export", "RUN", "--out", "/proc/e.safetensors"], "cannot write /proc/e.safetensors"),
        (["export", "RUN", "--out", "e.pt"], "e.pt does not end in .safetensors: give --out e.safetensors"),
        (["evaluate", "RUN", "more"], "unexpected word 'more'"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(words: list[str], message: str, done: Path, run: Run) -> None:
    before = sorted(Path().rglob("*"))
    assert message in run(*(done if word == "RUN" else word for word in words)).error()
    assert sorted(Path().rglob("*")) == before
