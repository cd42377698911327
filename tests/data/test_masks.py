from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from image_files import noise
from PIL import Image

from fastssl.data.decode import UnreadableError
from fastssl.data.masks import PALETTE, Mask, read_mask, write_mask

NUMBERS = np.array([[0, 1, 2], [0, 2, 255]], np.uint8)


def saved(image: Image.Image, path: Path) -> Path:
    image.save(path)
    return path


def test_a_palette_keeps_its_numbers_and_colours(tmp_path: Path) -> None:
    image = Image.fromarray(NUMBERS, "L")
    image.putpalette(bytes([9, 8, 7, 200, 0, 0, 0, 200, 0]) + PALETTE[9:])
    mask = read_mask(saved(image, tmp_path / "m.png"))
    assert mask.values.tolist() == NUMBERS.tolist()
    assert mask.objects == [1, 2]
    assert mask.palette == bytes([9, 8, 7, 200, 0, 0, 0, 200, 0]) + PALETTE[9:]


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    mask = Mask(torch.from_numpy(NUMBERS))
    write_mask(mask, tmp_path / "m.png")
    again = read_mask(tmp_path / "m.png")
    assert torch.equal(again.values, mask.values)
    assert again.palette == PALETTE
    assert Image.open(tmp_path / "m.png").convert("RGB").getpixel((1, 0)) == (128, 0, 0)


def test_the_palette_is_pascals() -> None:
    table = np.frombuffer(PALETTE, np.uint8).reshape(256, 3).tolist()
    assert table[:6] == [[0, 0, 0], [128, 0, 0], [0, 128, 0], [128, 128, 0], [0, 0, 128], [128, 0, 128]]
    assert table[8] == [64, 0, 0]
    assert table[255] == [224, 224, 192]


def test_black_and_white_is_one_object_and_levels_are_several(tmp_path: Path) -> None:
    two = saved(Image.fromarray(np.array([[0, 255]], np.uint8)), tmp_path / "two.png")
    assert read_mask(two).values.tolist() == [[0, 1]]
    bits = saved(Image.fromarray(np.array([[0, 255]], np.uint8)).convert("1"), tmp_path / "bits.png")
    assert read_mask(bits).values.tolist() == [[0, 1]]
    levels = saved(Image.fromarray(NUMBERS), tmp_path / "levels.png")
    assert read_mask(levels).values.tolist() == NUMBERS.tolist()


def test_colours_are_objects_and_black_is_none(tmp_path: Path) -> None:
    pixels = np.array([[[0, 0, 0], [255, 0, 0], [0, 0, 255], [255, 0, 0]]], np.uint8)
    mask = read_mask(saved(Image.fromarray(pixels), tmp_path / "m.png"))
    assert mask.values.tolist() == [[0, 2, 1, 2]]
    assert mask.palette[3:9] == bytes([0, 0, 255, 255, 0, 0])
    without_black = read_mask(saved(Image.fromarray(pixels[:, 1:]), tmp_path / "n.png"))
    assert without_black.objects == [1, 2]


def test_what_is_no_mask_is_refused(tmp_path: Path) -> None:
    photo = saved(noise(40, 40), tmp_path / "photo.png")
    with pytest.raises(UnreadableError, match=r"a picture of 16\d\d colours is no mask"):
        read_mask(photo)
    (tmp_path / "broken.png").write_bytes(photo.read_bytes()[:200])
    with pytest.raises(UnreadableError, match="no image that can be read"):
        read_mask(tmp_path / "broken.png")
