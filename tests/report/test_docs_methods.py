"""The scripts that draw the pictures of docs/methods, on runs of seconds."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest
from report_helpers import images

from fastssl.data.images import Splits
from fastssl.train import config as configs
from fastssl.train.folder import RunFolder
from fastssl.train.loop import pretrain
from fastssl.train.trained import Trained, open_run

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture
def splits() -> Splits:
    return Splits(images(24, 0), images(12, 1))


def trained(method: str, splits: Splits, folder: Path, **settings: object) -> Trained:
    small = {"image_size": 16, "width": 8, "epochs": 1, "batch_size": 8, "threads": 1, "data": "noise", **settings}
    pretrain(configs.from_dict({"method": method, **small}), splits, RunFolder(folder))
    return open_run(folder)


def test_pictures_of_a_method(splits: Splits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastssl.data.images.load", lambda source, **options: splits)
    script = runpy.run_path(str(DOCS / "draw_methods.py"))
    run = trained("mae", splits, tmp_path / "mae", patch_size=4, depth=1)
    assert script["picture"](run).size == (6 + 3 * 102, 24 + 6 * 102)


def test_attention_of_rotation_and_of_labels(splits: Splits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastssl.data.images.load", lambda source, **options: splits)
    script = runpy.run_path(str(DOCS / "draw_attention.py"))
    run = trained("rotation", splits, tmp_path / "rotation", stem="cifar")
    assert script["picture"](run, epochs=1).size == (6 + 9 * 102, 24 + 6 * 102)


def test_neighbours_of_a_trained_and_an_untrained_encoder(
    splits: Splits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fastssl.data.images.load", lambda source, **options: splits)
    script = runpy.run_path(str(DOCS / "draw_methods.py"))
    drawn = script["neighbours"](trained("simclr", splits, tmp_path / "simclr"))
    assert drawn.size == (6 + 11 * 102, 24 + 6 * 102)
