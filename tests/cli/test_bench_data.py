"""``fastssl bench-data``: the numbers fit each other; how large they are is not a test's business."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import pytest
from cli_helpers import Run, write_images
from rich.console import Console

from fastssl.cli import console
from fastssl.data import engines
from fastssl.errors import UserError

ANY_BATCH = ["--image_size", "16", "--width", "8", "--seconds", "0.2", "--threads", "1"]
QUICK = [*ANY_BATCH, "--batch_size", "8"]


def test_every_engine_is_measured_and_the_table_says_what_waits(photos: Path, run: Run) -> None:
    outcome = run("bench-data", photos, *QUICK, "--preset", "byol", "--plan.second.blur", "0", "--json", "all.json")
    assert outcome.code == 0
    found = json.loads(Path("all.json").read_text())
    assert found["images"] == 30
    assert found["config"]["plan"] == {"second": {"blur": 0.0}}
    assert [engine["engine"] for engine in found["engines"]] == list(engines.NAMES)
    measured = [engine for engine in found["engines"] if engine["cannot"] is None]
    assert "native" in [engine["engine"] for engine in measured]
    for engine in measured:
        rate = engine["images"]
        assert 0 < rate["slowest"] <= rate["median"] <= rate["fastest"]
        assert engine["ready_after"] > 0
        assert engine["peak_megabytes"] > 1
        assert (engine["decoding"] == 0) == (engine["engine"] in engines.IN_MEMORY)
        assert engine["decoding"] <= 1
        assert f"{engine['engine']} " in outcome.out
    best = max(measured, key=lambda engine: engine["images"]["median"])
    assert found["fastest"] == best["engine"]
    waits = "data" if best["images"]["median"] < found["step"]["median"] else "compute"
    assert found["bottleneck"] == waits
    assert f"{waits} is the bottleneck" in outcome.out


@pytest.fixture
def only_native(monkeypatch: pytest.MonkeyPatch) -> None:
    def require(engine: str) -> None:
        if engine != "native":
            raise UserError("not [here]")

    monkeypatch.setattr(engines, "require", require)


@pytest.mark.usefixtures("only_native")
def test_an_engine_that_is_missing_has_its_reason(photos: Path, run: Run) -> None:
    outcome = run("bench-data", photos, *QUICK)
    assert outcome.code == 0
    assert "not here" in outcome.out
    assert "dali: not [here]" in outcome.out
    assert "native is fastest" in outcome.out


@pytest.mark.usefixtures("only_native")
def test_a_terminal_is_told_how_many_turns_are_done(photos: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = io.StringIO()
    monkeypatch.setattr(console, "_err", Console(file=shown, force_terminal=True, width=80, highlight=False))
    assert run("bench-data", photos, *QUICK).code == 0
    assert "measuring engines and step" in shown.getvalue()
    *_, last = re.findall(r"(\d+/\d+) turns", shown.getvalue())
    assert last == "13/13"  # three starts, and five turns of native and of the step


@pytest.mark.usefixtures("only_native")
def test_few_images_are_one_batch_and_those_that_cannot_be_read_are_named(run: Run, tmp_path: Path) -> None:
    folder = write_images(tmp_path / "few", {"": 5})
    (folder / "broken.png").write_bytes(b"not a picture")
    outcome = run("bench-data", folder, *ANY_BATCH, "--json", "few.json")
    assert outcome.code == 0
    assert "5 images to views of 16 pixels, in batches of 5" in outcome.out
    assert "skipped 1 that cannot be read:\n  broken.png: " in outcome.err
    found = json.loads(Path("few.json").read_text())
    assert (found["images"], found["config"]["batch_size"]) == (5, 5)
    assert [file["name"] for file in found["skipped"]] == ["broken.png"]


@pytest.mark.usefixtures("only_native")
def test_a_single_image_is_measured_too(run: Run, tmp_path: Path) -> None:
    folder = write_images(tmp_path / "one", {"": 1})
    outcome = run("bench-data", folder, *ANY_BATCH, "--preset", "mae")
    assert outcome.code == 0
    assert "1 image to views of 16 pixels, in batches of 1" in outcome.out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere/"], "no file or folder 'nowhere/'"),
        (["empty"], "no image in 'empty'"),
        (["few"], "a batch of 8 is larger than the 4 images that can be read: give --batch_size 4 or less"),
        (["few", "--preset", "dina"], "unknown view plan 'dina': did you mean 'dino'?"),
        (["few", "--encoder", "resnet19"], "unknown encoder 'resnet19': did you mean 'resnet18'?"),
        (["few", "--stem", "cifer"], "unknown --stem 'cifer': did you mean 'cifar'?"),
        (["few", "--seconds", "0"], "seconds must be a finite number above 0; got 0"),
        (["few", "--max_images", "4"], "max_images must be at least batch_size, 8; got 4"),
        (["few", "--batch_size", "-1"], "batch_size must be 0 or more; got -1"),
        (["few", "--batch_size", "0", "--max_images", "0"], "max_images must be 1 or more; got 0"),
        (["few", "--image_size", "0"], "image_size must be 1 or more; got 0"),
        (["few", "--threads", "-1"], "threads must be 0 or more; got -1"),
        (["few", "--threads", "100000"], "threads 100000 are too many"),
        (["few", "--device", "toaster"], "unknown device 'toaster'"),
        (["few", "--plan.flip", "2"], "plan.flip must be a probability in [0, 1]; got 2.0"),
        ([], "DATA is missing: fastssl bench-data DATA"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(words: list[str], message: str, run: Run, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    write_images(tmp_path / "few", {"": 4})
    before = sorted(tmp_path.rglob("*"))
    assert (
        message in run("bench-data", *words[:1], *QUICK, *words[1:], *(["--json", "x.json"] if words else [])).error()
    )
    assert sorted(tmp_path.rglob("*")) == before
