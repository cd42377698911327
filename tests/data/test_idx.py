from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fastssl.data import idx
from fastssl.errors import UserError


def encoded(array: np.ndarray) -> bytes:
    return bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def pixels(count: int = 5, height: int = 28, width: int = 28) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, height, width), dtype=np.uint8)


def test_both_splits_are_found_zipped_or_not(tmp_path: Path) -> None:
    for name in ("train-images-idx3-ubyte.gz", "t10k-images.idx3-ubyte", "train-labels-idx1-ubyte", "other.png"):
        (tmp_path / name).touch()
    assert {split: path.name for split, path in idx.find(tmp_path).items()} == {
        "train": "train-images-idx3-ubyte.gz",
        "test": "t10k-images.idx3-ubyte",
    }


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_images_and_labels_come_back(tmp_path: Path, suffix: str) -> None:
    pack = gzip.compress if suffix else bytes
    path = tmp_path / f"train-images-idx3-ubyte{suffix}"
    path.write_bytes(pack(encoded(pixels())))
    (tmp_path / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(encoded(np.arange(5, dtype=np.uint8))))
    images, labels = idx.read(path, 28)
    assert torch.equal(images, torch.from_numpy(pixels())[:, None].expand(-1, 3, -1, -1))
    assert labels is not None
    assert labels.dtype == torch.int64
    assert labels.tolist() == [0, 1, 2, 3, 4]


def test_labels_may_be_missing(tmp_path: Path) -> None:
    path = tmp_path / "train-images-idx3-ubyte"
    path.write_bytes(encoded(pixels()))
    assert idx.read(path, 28)[1] is None


@pytest.mark.parametrize("size", [14, 32])
def test_resizing_is_pillows(tmp_path: Path, size: int) -> None:
    path = tmp_path / "train-images-idx3-ubyte"
    path.write_bytes(encoded(pixels(height=30)))
    images, _ = idx.read(path, size)
    theirs = Image.fromarray(pixels(height=30)[0, 1:29]).resize((size, size), Image.Resampling.BILINEAR)
    assert np.abs(images[0, 0].numpy().astype(int) - np.asarray(theirs)).max() <= 1


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:-1],
        lambda data: data[:9],
        lambda _: b"",
        lambda data: b"\0\0\x0d\3" + data[4:],
        lambda _: encoded(np.empty((0, 28, 28), np.uint8)),
        lambda data: data[:4] + b"\xff" * 12 + data[16:],
    ],
)
def test_damaged_files_are_refused(tmp_path: Path, damage) -> None:
    path = tmp_path / "train-images-idx3-ubyte"
    path.write_bytes(damage(encoded(pixels())))
    with pytest.raises(UserError, match="no whole idx file") as caught:
        idx.read(path, 28)
    assert "\n" not in str(caught.value)


def test_a_truncated_gzip_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "train-images-idx3-ubyte.gz"
    path.write_bytes(gzip.compress(encoded(pixels()))[:-100])
    with pytest.raises(UserError, match="download it again"):
        idx.read(path, 28)


def test_images_and_labels_must_be_equally_many(tmp_path: Path) -> None:
    path = tmp_path / "train-images-idx3-ubyte"
    path.write_bytes(encoded(pixels()))
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(encoded(np.arange(4, dtype=np.uint8)))
    with pytest.raises(UserError, match=r"5 images.*4 labels"):
        idx.read(path, 28)
