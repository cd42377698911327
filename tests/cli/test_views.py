"""``fastssl views``: a picture and words."""

from __future__ import annotations

import tarfile
from pathlib import Path

import numpy as np
import pytest
from cli_helpers import Run, write_images
from dali_helpers import needs_dali
from PIL import Image

from fastssl.data import engines, plan_words, plans


def test_it_draws_the_views_and_says_what_they_are(photos: Path, run: Run) -> None:
    outcome = run("views", photos, "--preset", "dino", "--image_size", "16", "--rows", "2", "--plan.local.views", "3")
    assert outcome.code == 0
    words = plan_words.describe(plans.changed(plans.dino(16), {"local": {"views": 3}}))
    first, second, told = outcome.out.split("\n", 2)
    assert told == f"{words}\npicture: views.png\n"
    named = [first.removeprefix("row 1: "), second.removeprefix("row 2: ")]
    assert all((photos / name).is_file() for name in named)
    assert named[0] != named[1]
    assert "row" not in outcome.err
    with Image.open("views.png") as picture:
        assert picture.format == "PNG"
        assert np.asarray(picture).std() > 10


def test_the_ending_chooses_the_format_and_the_seed_the_views(photos: Path, run: Run) -> None:
    for name, seed in (("a.jpg", 0), ("b.jpeg", 0), ("c.jpg", 1)):
        assert run("views", photos, "--image_size", "16", "--out", name, "--seed", seed).code == 0
    with Image.open("a.jpg") as picture:
        assert picture.format == "JPEG"
    a, b, c = (Path(name).read_bytes() for name in ("a.jpg", "b.jpeg", "c.jpg"))
    assert a == b != c


def test_a_file_that_cannot_be_read_is_named(run: Run, tmp_path: Path) -> None:
    folder = write_images(tmp_path / "some", {"": 3})
    (folder / "broken.png").write_bytes(b"not a picture")
    outcome = run("views", "some", "--rows", "9", "--image_size", "16")
    assert outcome.code == 0
    assert "skipped 1 that cannot be read" in outcome.err
    assert "broken.png: " in outcome.err
    assert "3 rows of 9: other images are not there, or cannot be read" in outcome.err


def test_each_row_is_named_after_the_file_it_shows(run: Run, tmp_path: Path) -> None:
    (tmp_path / "shades").mkdir()
    for shade in range(0, 250, 50):
        Image.new("RGB", (16, 16), (shade,) * 3).save(tmp_path / "shades" / f"{shade}.png")
    outcome = run("views", "shades", "--rows", "5", "--image_size", "16", "--preset", "eval")
    shades = [int(line.split()[2].removesuffix(".png")) for line in outcome.out.splitlines()[:5]]
    with Image.open("views.png") as picture:
        cells = np.asarray(picture)[24:, 6:]
    assert [cells[48 + 102 * row, 48].tolist() for row in range(5)] == [[shade] * 3 for shade in shades]


@pytest.mark.parametrize(
    "engine", [pytest.param(name, marks=needs_dali if name == "dali" else ()) for name in engines.NAMES]
)
def test_the_engine_makes_the_views(engine: engines.Engine, run: Run, tmp_path: Path) -> None:
    pixels = np.full((40, 200, 3), (0, 200, 0), np.uint8)
    pixels[:, :60] = 200, 0, 0
    (tmp_path / "wide").mkdir()
    Image.fromarray(pixels).save(tmp_path / "wide" / "0.png")
    whole = ["--preset", "eval", "--plan.crop_ratio", "5", "5", "--image_size", "40", "--engine", engine]
    assert run("views", "wide", *whole).code == 0
    with Image.open("views.png") as picture:
        cells = np.asarray(picture)[24:, 6:]
    left_of_view, corner_of_image = cells[48, 102 + 4], cells[4, 4]
    in_memory = engine in engines.IN_MEMORY  # there only the green square in the middle is
    assert np.argmax(left_of_view) == (1 if in_memory else 0)
    assert (corner_of_image.min() == 255) == (not in_memory)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere/"], "no file or folder 'nowhere/'"),
        (["empty"], "no image in 'empty'"),
        (["PHOTOS", "--preset", "dina"], "unknown view plan 'dina': did you mean 'dino'?"),
        (["PHOTOS", "--out", "views.gif"], "views.gif does not end in .png or .jpg or .jpeg or .webp"),
        (["PHOTOS", "--rows", "0"], "rows must be 1 or more; got 0"),
        (["PHOTOS", "--image_size", "0"], "image_size must be 1 or more; got 0"),
        (["PHOTOS", "--engine", "steam"], "unknown --engine 'steam': did you mean 'stream'?"),
        (["packed.tar.gz", "--engine", "stream"], "is a compressed tar, and the engine 'stream' reads single files"),
        (["PHOTOS", "--seed", "-1"], "seed must be 0 or more; got -1"),
        (["PHOTOS", "--plan.blurr", "0"], "unknown option '--plan.blurr': did you mean '--plan.blur'?"),
        (["PHOTOS", "--plan.flip", "2"], "plan.flip must be a probability in [0, 1]; got 2.0"),
        (["PHOTOS", "--out", "/proc/views.png"], "cannot write /proc/views.png"),
        ([], "DATA is missing: fastssl views DATA"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(words: list[str], message: str, photos: Path, run: Run) -> None:
    Path("empty").mkdir()
    with tarfile.open("packed.tar.gz", "w:gz") as tar:
        tar.add(photos / "cat", "cat")
    before = sorted(Path().rglob("*"))
    assert message in run("views", *(photos if word == "PHOTOS" else word for word in words)).error()
    assert sorted(Path().rglob("*")) == before
