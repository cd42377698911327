"""Colours for a photo from the command line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from cli_helpers import QUICK, Run
from PIL import Image
from safetensors import safe_open

from fastssl import models
from fastssl.cli import main
from fastssl.cli.colorize import shown_size
from fastssl.data.lab import grey
from fastssl.train.trained import open_run


@pytest.fixture(scope="module")
def colors(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "colors"
    words = ["pretrain", "colorization", "--data", str(photos), "--out", str(folder), *QUICK, "--stem", "cifar"]
    assert main(words) == 0
    return folder


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    pixels = np.random.default_rng(0).integers(256, size=(50, 70, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def test_a_photo_gets_colours_in_its_own_size(colors: Path, photo: Path, run: Run) -> None:
    outcome = run("colorize", photo, "--checkpoint", colors, "--out", "out.png")
    assert outcome.code == 0
    assert outcome.out == "70 x 50 pixels in colour: out.png\n"
    with Image.open("out.png") as colored, Image.open(photo) as before:
        assert colored.size == (70, 50)
        assert colored.mode == "RGB"
        assert np.abs(np.asarray(colored).astype(int) - np.asarray(before)).max() > 50


def test_its_own_colours_are_not_looked_at(colors: Path, photo: Path, run: Run) -> None:
    with Image.open(photo) as picture:
        grey = picture.convert("L")
    grey.save("grey.png")
    grey.convert("RGB").save("three.webp", lossless=True)
    for name in ("grey.png", "three.webp"):
        assert run("colorize", name, "--checkpoint", colors, "--out", f"{name}.png").code == 0
    assert Path("grey.png.png").read_bytes() == Path("three.webp.png").read_bytes()


def test_the_report_shows_pictures_and_the_accuracy(colors: Path) -> None:
    html = (colors / "report.html").read_text(encoding="utf-8")
    assert html.count("<figcaption>colorized</figcaption>") == 6
    assert "Accuracy of the pretext task over epochs" in html


@pytest.mark.parametrize(
    ("height", "width", "shown"), [(50, 70, (16, 24)), (70, 50, (24, 16)), (16, 16, (16, 16)), (10, 499, (16, 800))]
)
def test_the_short_side_is_the_runs(height: int, width: int, shown: tuple[int, int]) -> None:
    assert shown_size(height, width, 16, 8) == shown


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["PHOTO", "--checkpoint", "RUN", "--out", "out.gif"], "out.gif does not end in .png or .jpg"),
        (["PHOTO", "--checkpoint", "nowhere", "--out", "out.png"], "nowhere holds no finished or interrupted run"),
        (["gone.png", "--checkpoint", "RUN", "--out", "out.png"], "cannot read gone.png: No such file"),
        (["text.png", "--checkpoint", "RUN", "--out", "out.png"], "cannot read text.png: not an image"),
        (["PHOTO", "--out", "out.png"], "--checkpoint is missing: fastssl colorize PHOTO"),
        (["PHOTO", "--checkpoint", "OTHER", "--out", "out.png"], "is a run of simclr, and colorize needs one of col"),
    ],
)
def test_bad_input_is_one_line(words: list[str], message: str, colors: Path, done: Path, photo: Path, run: Run) -> None:
    Path("text.png").write_text("no picture")
    names = {"PHOTO": photo, "RUN": colors, "OTHER": done}
    assert message in run("colorize", *(names.get(word, word) for word in words)).error()
    assert not list(Path().glob("out.*"))


def test_grey_images_are_one_line(run: Run, tmp_path: Path) -> None:
    (tmp_path / "grey").mkdir()
    for i in range(8):
        Image.new("L", (16, 16), 20 * i).save(tmp_path / "grey" / f"{i}.png")
    outcome = run("pretrain", "colorization", "--data", "grey", "--out", "out", *QUICK)
    assert "colorization learns from colours, and the 8 images to train on are all grey" in outcome.error()
    assert not Path("out").exists()


def test_an_exported_encoder_says_that_it_knows_grey_alone(colors: Path, run: Run) -> None:
    assert run("export", colors, "--out", "encoder.safetensors").code == 0
    with safe_open("encoder.safetensors", "pt") as file:
        told = file.metadata()
        weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    assert told["input"] == "grey"
    encoder = models.get(told["architecture"])(**json.loads(told["options"])).eval()
    encoder.load_state_dict(weights, strict=True)
    shown = grey(100 * torch.rand(2, 1, 16, 16))
    torch.testing.assert_close(encoder(shown), open_run(colors).encoder(shown), atol=1e-3, rtol=1e-3)
