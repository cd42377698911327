"""What a terminal shows while something takes long; elsewhere nothing moves."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from rich.console import Console
from rich.text import Text

from fastssl.cli import console
from fastssl.eval.tuning import Case, in_words
from fastssl.train.log import Row
from fastssl.train.loop import Progress

ROW = Row(step=1, epoch=1, lr=0.1, loss=2.0, images_per_second=10.0, seconds=0.1, waiting=0.0, knn=None, extra={})


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    shown = io.StringIO()
    monkeypatch.setattr(console, "_err", Console(file=shown, force_terminal=True, width=160, highlight=False))
    return shown


def test_a_bar_counts(terminal: io.StringIO) -> None:
    with console.counting("computing features") as progress:
        progress(3, 5)
    assert "computing features" in terminal.getvalue()
    assert "3/5 images" in terminal.getvalue()


def test_a_bar_without_a_total_counts_nothing(terminal: io.StringIO) -> None:
    with console.reading("photos"):
        pass
    assert "reading photos" in terminal.getvalue()
    assert "0/" not in terminal.getvalue()
    assert "images" not in terminal.getvalue()


def test_the_bar_of_a_training_tells_how_many_images_are_read(terminal: io.StringIO) -> None:
    with console.TrainingDisplay(lambda: (1536, 60_000)):
        pass
    assert "before the first step" in terminal.getvalue()
    assert "1,536 of 60,000 images read" in terminal.getvalue()


@pytest.mark.parametrize("width", [60, 80, 200])
def test_whatever_the_width_nothing_that_is_told_is_cut(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = io.StringIO()
    monkeypatch.setattr(console, "_err", Console(file=shown, force_terminal=True, width=width, highlight=False))
    extra = {"pretext_accuracy": 0.5, "chance": 0.25}
    with console.TrainingDisplay(lambda: (1536, 60_000)) as display:
        display.watch(Progress(replace(ROW, extra=extra), 4, 2, 2))
    with console.TuningDisplay(12) as tuning:
        tuning.begin(Case("random initialisation", 0.01, 0.5, 3))
        tuning.watch(8, 401)
    path = "/home/somebody/data/photographs/of/cats/and/dogs/taken/in/the/summer/of/last/year"
    with console.reading(path) as progress:
        progress(8, 401)
    told = Text.from_ansi(shown.getvalue()).plain
    whole = " ".join(told.split())
    for words in (
        "epoch 1/2 10 images/s (0% waiting for data) loss 2.000 solved 50.0 % (chance 25 %)",
        f"1 of 12: random initialisation, 1 % of the labels, {in_words(0.5)}, seed 3",
    ):
        assert words in whole
    for numbers in ("left 1,536 of 60,000 images read", "8/401 images"):
        assert numbers in told
    assert path in "".join(told.split())
    assert "\N{HORIZONTAL ELLIPSIS}" not in told


def test_once_all_images_are_read_the_bar_tells_of_none(terminal: io.StringIO) -> None:
    with console.TrainingDisplay(lambda: (60_000, 60_000)) as display:
        display.watch(Progress(ROW, 4, 2, 2))
    assert "loss 2.000" in terminal.getvalue()
    assert "images read" not in terminal.getvalue()


def test_the_bar_of_a_training_tells_of_the_online_knn(terminal: io.StringIO) -> None:
    with console.TrainingDisplay() as display:
        display.watch_knn(1, 10)  # of an epoch of one step, before that is shown
        display.watch(Progress(ROW, 4, 2, 2))
        display.watch_knn(1024, 60000)
    assert "loss 2.000" in terminal.getvalue()
    assert "kNN: features of 1,024 of 60,000 images" in terminal.getvalue()
