"""Holes in a photo, filled from the command line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from cli_helpers import QUICK, Run
from PIL import Image

from fastssl.cli import main
from fastssl.train import log
from fastssl.train.folder import RunFolder


def train(photos: Path, folder: Path, *words: str) -> Path:
    assert main(["pretrain", "inpainting", "--data", str(photos), "--out", str(folder), *QUICK, *words]) == 0
    return folder


@pytest.fixture(scope="module")
def holes(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(photos, tmp_path_factory.mktemp("runs") / "holes", "--stem", "cifar")


@pytest.fixture(scope="module")
def middles(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "middles"
    words = ("--inpainting.hole", "center", "--inpainting.adversarial_weight", "0")
    return train(photos, folder, "--stem", "cifar", *words)


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    pixels = np.random.default_rng(0).integers(256, size=(50, 70, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def mask(name: str, size: tuple[int, int] = (70, 50), box: tuple[int, int, int, int] = (10, 5, 40, 20)) -> str:
    picture = Image.new("L", size)
    picture.paste(255, box)
    picture.save(name)
    return name


def changed(photo: Path, out: str) -> np.ndarray:
    with Image.open(photo) as before, Image.open(out) as after:
        assert after.size == before.size
        return (np.asarray(before) != np.asarray(after)).any(axis=2)


def test_what_is_white_in_the_mask_is_filled(holes: Path, photo: Path, run: Run) -> None:
    outcome = run("inpaint", photo, "--checkpoint", holes, "--mask", mask("mask.png"), "--out", "out.png")
    assert outcome.code == 0
    assert outcome.out == "70 x 50 pixels, filled: out.png\n"
    where = changed(photo, "out.png")
    assert where[5:20, 10:40].mean() > 0.95
    where[5:20, 10:40] = False
    assert not where.any()


def test_without_a_mask_the_middle_is_filled(holes: Path, middles: Path, photo: Path, run: Run) -> None:
    for checkpoint in (holes, middles):
        assert run("inpaint", photo, "--checkpoint", checkpoint, "--out", "out.png").code == 0
        rows, columns = changed(photo, "out.png").nonzero()
        middle = rows.min() + rows.max(), columns.min() + columns.max()
        assert middle == (pytest.approx(49, abs=2), pytest.approx(69, abs=2))
        assert rows.max() - rows.min() < 25


def test_the_report_shows_holes_error_and_sharpness(holes: Path, middles: Path) -> None:
    html = (holes / "report.html").read_text(encoding="utf-8")
    counts = [html.count(f"<figcaption>{name}</figcaption>") for name in ("original", "masked", "filled")]
    assert counts == [6, 6, 6]
    assert "Error of the pretext task over epochs" in html
    assert "Sharpness over epochs" in html
    rows = log.read(RunFolder(holes).metrics)
    assert all({"pretext_error", "constant_error", "sharpness", "fooled"} <= row.extra.keys() for row in rows)
    assert "fooled" not in log.read(RunFolder(middles).metrics)[0].extra


BY_RUN, BY_MIDDLES, BY_OTHER = (
    ("PHOTO", "--checkpoint", name, "--out", "out.png") for name in ("RUN", "MIDDLES", "OTHER")
)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["PHOTO", "--checkpoint", "RUN", "--out", "out.gif"], "out.gif does not end in .png or .jpg"),
        ([*BY_RUN, "--mask", "small.png"], "has 60 x 50 pixels and the photo 70 x 50"),
        ([*BY_RUN, "--mask", "none.png"], "none.png hides nothing: what is to be"),
        ([*BY_RUN, "--mask", "all.png"], "all.png hides everything"),
        ([*BY_RUN, "--mask", "gone.png"], "cannot read gone.png"),
        ([*BY_MIDDLES, "--mask", "good.png"], "knows holes in the center alone"),
        ([*BY_OTHER], "is a run of simclr, and inpaint needs one of inpainting"),
    ],
)
def test_bad_input_is_one_line(
    words: list[str], message: str, holes: Path, middles: Path, done: Path, photo: Path, run: Run
) -> None:
    mask("good.png")
    mask("small.png", (60, 50))
    mask("none.png", box=(0, 0, 0, 0))
    mask("all.png", box=(0, 0, 70, 50))
    names = {"PHOTO": photo, "RUN": holes, "MIDDLES": middles, "OTHER": done}
    assert message in run("inpaint", *(names.get(word, word) for word in words)).error()
    assert not list(Path().glob("out.*"))


def test_images_too_small_are_one_line(photos: Path, run: Run) -> None:
    outcome = run("pretrain", "inpainting", "--data", photos, "--out", "out", "--image_size", "12")
    assert "inpainting needs images of at least 16 x 16 pixels; got 12 x 12" in outcome.error()
    assert not Path("out").exists()
