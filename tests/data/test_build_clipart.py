from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest
from image_files import encode, noise, write_tree
from PIL import Image

from fastssl.data import build_clipart, images
from fastssl.data.build_clipart import Drawing


def drawing(name: str, label: str, pixels: np.ndarray) -> Drawing:
    return Drawing(name, label, pixels)


def random(seed: int) -> np.ndarray:
    return np.asarray(noise(8, 8, seed).resize((64, 64), Image.Resampling.NEAREST))


def test_near_and_mirrored_duplicates_leave_one() -> None:
    original = random(0)
    nearly = np.clip(original.astype(int) + 5, 0, 255).astype(np.uint8)
    kept = build_clipart.without_duplicates(
        [
            drawing("a.png", "animals", original),
            drawing("b.png", "animals", nearly),
            drawing("c.png", "animals", original[:, ::-1].copy()),
            drawing("d.png", "animals", random(1)),
        ]
    )
    assert [item.name for item in kept] == ["a.png", "d.png"]


def test_a_drawing_of_two_classes_is_dropped_everywhere() -> None:
    kept = build_clipart.without_duplicates(
        [
            drawing("a.png", "plants", random(0)),
            drawing("b.png", "food", random(0)),
            drawing("c.png", "food", random(1)),
        ]
    )
    assert [item.name for item in kept] == ["c.png"]


def test_a_drawing_is_cut_to_what_is_drawn(tmp_path: Path) -> None:
    page = Image.new("RGBA", (400, 800), (255, 255, 255, 0))
    page.paste((255, 0, 0, 255), (350, 20, 390, 60))
    blank = Image.new("RGB", (50, 50), "white")
    write_tree(tmp_path, {"food/a.png": encode(page), "food/b.png": encode(blank), "food/c.png": b"text"})
    (found,) = build_clipart.read(tmp_path)
    assert found.name == "food/a.png"
    assert found.pixels.shape == (64, 64, 3)
    assert found.pixels[32, 32].tolist() == [255, 0, 0]
    assert (found.pixels[5:59, 5:59, 1] == 0).all()


def test_the_pack_can_be_loaded_and_is_the_same_every_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = {
        f"{folder}/{i}.png": encode(noise(8, 8, 100 * k + i).resize((80, 80), Image.Resampling.NEAREST))
        for k, folder in enumerate(("food", "tools", "animals/birds", "not_a_class"))
        for i in range(10)
    }
    source = write_tree(tmp_path / "png", files)
    packs = [tmp_path / name for name in ("one.zip", "two.zip")]
    for pack in packs:
        build_clipart.main([str(source), str(pack)])
    assert packs[0].read_bytes() == packs[1].read_bytes()
    assert "30 drawings, 30 without duplicates, 30 chosen" in capsys.readouterr().out
    splits = images.load(str(packs[0]), size=64)
    assert splits.test is not None
    assert (len(splits.train), len(splits.test)) == (24, 6)
    assert splits.train.classes == ("animals", "food", "tools")


def test_the_embedded_pack_names_its_source_and_licence() -> None:
    with zipfile.ZipFile(images.EMBEDDED["clipart"]) as archive:
        text = archive.read("README.txt").decode()
        names = [name for name in archive.namelist() if name != "README.txt"]
    assert "openclipart-png" in text
    assert "Public Domain Dedication" in text
    assert f"{len(names)} drawings of {len(build_clipart.CLASSES)} classes" in text
    assert {name.split("/")[1] for name in names} == set(build_clipart.CLASSES)
