"""``fastssl evaluate --protocol``: fine-tuning a finished run's encoder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from cli_helpers import Run

from fastssl.eval import finetuning

QUICK = ["--finetune.epochs", "1", "--finetune.least_steps", "1", "--finetune.batch_size", "8", "--seeds", "2"]


@pytest.fixture
def copy(done: Path, tmp_path: Path) -> Path:
    """A run that may be written to."""
    return Path(shutil.copytree(done, tmp_path / "copy"))


def test_few_labels_are_tuned_tabled_and_reported(copy: Path, run: Run) -> None:
    outcome = run("evaluate", copy, "--protocol", "few", *QUICK)
    assert outcome.code == 0
    assert "Accuracy on 6 images, mean and standard deviation over 2 seeds" in outcome.out
    assert "1 % (3 images) linear probe" in " ".join(outcome.out.split())
    assert "16 of 16: random initialisation, 10 % of the labels, all, seed 1" in outcome.err
    told = json.loads((copy / "tuned.json").read_text())
    assert len(told["rows"]) == 16
    assert all(0 <= row["accuracy"] <= 1 for row in told["rows"])
    assert told["settings"]["finetune"]["optim"]["name"] == "adamw"
    assert run("report", copy).code == 0
    html = (copy / "report.html").read_text()
    assert "<h2>Fine-tuning</h2>" in html
    assert "10.0 % (3 images)" in html
    assert not (copy / "tuning.pt").exists()
    assert run("pretrain", "--config", copy / "config.yaml", "--out", copy, "--overwrite", "--epochs", "1").code == 0
    assert not (copy / "tuned.json").exists()  # another run's


def test_what_is_done_is_not_done_twice(copy: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["evaluate", copy, "--protocol", "finetune", *QUICK]
    assert run(*words).code == 0
    first = (copy / "tuned.json").read_text()
    cut = json.loads(first)
    cut["rows"] = cut["rows"][:-1]
    (copy / "tuned.json").write_text(json.dumps(cut))
    begun = []
    trainer = finetuning._Trainer

    class Counting(trainer):  # type: ignore[misc, valid-type]
        def __init__(self, *arguments: object) -> None:
            begun.append(arguments)
            super().__init__(*arguments)

    monkeypatch.setattr(finetuning, "_Trainer", Counting)
    assert run(*words).code == 0
    assert len(begun) == 1
    assert json.loads((copy / "tuned.json").read_text()) == json.loads(first)
    assert run(*words, "--finetune.crop", "0.5").code == 0
    assert len(begun) == 1 + 4  # other settings, all anew


def test_part_of_the_encoder_on_other_images(copy: Path, photos: Path, run: Run) -> None:
    words = ["--protocol", "partial", *QUICK, "--seeds", "1", "--data", photos]
    outcome = run("evaluate", copy, *words)
    assert outcome.code == 0
    assert [word in outcome.out for word in ("1 block ", "8 blocks", "all ")] == [True] * 3
    assert (copy / f"tuned-{photos.stem}.json").exists()
    assert not (copy / "tuned.json").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--protocol", "fine"], "did you mean 'finetune'"),
        (["--protocol", "few", "--seeds", "0"], "must be 1 or more; got 0"),
        (["--protocol", "few", "--finetune.epochs", "0"], "epochs of fine-tuning must be 1 or more; got 0"),
        (["--protocol", "few", "--finetune.precision", "half"], "--finetune.precision"),
        (["--protocol", "few", "--epochs", "3"], "did you mean '--finetune.epochs'"),
    ],
)
def test_bad_input_is_one_line(words: list[str], message: str, done: Path, run: Run) -> None:
    assert message in run("evaluate", done, *words).error()


def test_a_damaged_file_is_named(copy: Path, run: Run) -> None:
    (copy / "tuned.json").write_text("{}")
    assert "tuned.json is damaged" in run("evaluate", copy, "--protocol", "few", *QUICK).error()


def test_the_pretext_task_is_scored_with_the_rest(copy: Path, run: Run) -> None:
    outcome = run("evaluate", copy)
    assert "pretext task on the test images: loss " in outcome.out
    told = json.loads((copy / "scores.json").read_text())["pretext"]
    assert (told["images"], told["accuracy"]) == (6, None)
