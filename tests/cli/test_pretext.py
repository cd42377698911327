"""The puzzles from the command line: trained, resumed, scored, used, and their accuracy shown beside chance."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from cli_helpers import QUICK, Run

from fastssl.train import log
from fastssl.train.folder import RunFolder


@pytest.mark.parametrize(("method", "chance"), [("rotation", 0.25), ("relative_patch", 0.125), ("jigsaw", 0.1)])
def test_a_puzzle_is_trained_scored_and_used(method: str, chance: float, photos: Path, run: Run) -> None:
    settings = ["--jigsaw.permutations", "10"] if method == "jigsaw" else []
    done = run("pretrain", method, "--data", photos, "--out", "out", *QUICK, *settings)
    assert done.code == 0
    assert f"(chance {100 * chance:.3g} %)" in done.err
    rows = log.read(RunFolder(Path("out")).metrics)
    assert [row.extra["chance"] for row in rows] == [chance] * 6
    assert all(0 <= row.extra["pretext_accuracy"] <= 1 for row in rows)
    assert "Accuracy of the pretext task over epochs" in Path("out/report.html").read_text(encoding="utf-8")
    assert run("pretrain", "--out", "out", "--resume").code == 0
    assert run("evaluate", "out").code == 0
    assert run("embed", "out", photos, "--out", "features.npz").code == 0
    with np.load("features.npz") as table:
        assert table["features"].shape == (30, 64)
        assert np.isfinite(table["features"]).all()


@pytest.mark.parametrize("method", ["relative_patch", "jigsaw"])
def test_images_too_small_for_the_tiles_are_one_line_and_write_nothing(method: str, photos: Path, run: Run) -> None:
    outcome = run("pretrain", method, "--data", photos, "--out", "out", "--image_size", "8")
    assert f"{method} cuts 3 x 3 tiles of 3 pixels or more, and images of 8 pixels" in outcome.error()
    assert not Path("out").exists()
