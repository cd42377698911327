"""The idx files of MNIST and its relatives (Fashion-MNIST, KMNIST, EMNIST): one file of images, one of labels."""

from __future__ import annotations

import gzip
import math
import re
import zlib
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fastssl.data.sources import one_line
from fastssl.errors import UserError

_IMAGES = re.compile(r"(?P<split>train|t10k|test)[-_.]images[-_.]idx3[-_.]ubyte(\.gz)?")
_RESIZE_BATCH = 4096


def find(folder: Path) -> dict[str, Path]:
    """The image files of an idx data set in ``folder``, by split ("train", "test"); empty if it holds none."""
    found = {}
    with suppress(OSError):  # a folder that cannot be listed is reported when it is searched for images
        for path in sorted(folder.iterdir(), reverse=True):  # the plain file is taken before the same one with .gz
            if match := _IMAGES.fullmatch(path.name):
                found["train" if match["split"] == "train" else "test"] = path
    return found


def read(images_path: Path, size: int) -> tuple[Tensor, Tensor | None]:
    """Images (N, 3, size, size) uint8, grey in all three channels, and their labels (N,) int64 if their file is there.

    Raises:
        UserError: if a file is damaged, or the two disagree on how many images there are.
    """
    pixels = _read_array(images_path, dims=3)
    labels_path = _labels_of(images_path)
    if labels_path is None:
        return _resize(pixels, size), None
    labels = _read_array(labels_path, dims=1)
    if len(labels) != len(pixels):
        raise UserError(
            f"{str(images_path)!r} holds {len(pixels)} images but {labels_path.name!r} {len(labels)} labels: "
            "download both again"
        )
    return _resize(pixels, size), torch.from_numpy(labels.astype(np.int64))


def _labels_of(images_path: Path) -> Path | None:
    name = images_path.name.removesuffix(".gz").replace("images", "labels").replace("idx3", "idx1")
    candidates = (images_path.with_name(name), images_path.with_name(f"{name}.gz"))
    return next((path for path in candidates if path.is_file()), None)


def _read_array(path: Path, dims: int) -> np.ndarray:
    """The header is 0, 0, 8 (unsigned bytes), the number of dimensions, then each as a big-endian 32-bit integer."""
    try:
        content = path.read_bytes()
        data = gzip.decompress(content) if path.suffix == ".gz" else content
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"cannot read {str(path)!r} ({one_line(error)}): download it again") from error
    start = 4 + 4 * dims
    shape = tuple(int(n) for n in np.frombuffer(data[4:start], dtype=">u4")) if len(data) >= start else ()
    if data[:4] != bytes((0, 0, 8, dims)) or math.prod(shape) != len(data) - start or 0 in shape:
        raise UserError(f"{str(path)!r} is no whole idx file of {dims} dimensions: download it again")
    return np.frombuffer(data, dtype=np.uint8, offset=start).reshape(shape)


def _resize(pixels: np.ndarray, size: int) -> Tensor:
    """(N, H, W) to (N, 3, size, size): short side to ``size``, antialiased, and the centre cut out."""
    count, height, width = pixels.shape
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = pixels[:, top : top + side, left : left + side]
    images = torch.empty(count, 3, size, size, dtype=torch.uint8)
    for start in range(0, count, _RESIZE_BATCH):
        part = slice(start, start + _RESIZE_BATCH)
        batch = torch.from_numpy(square[part, None].astype(np.float32))
        images[part] = F.interpolate(batch, (size, size), mode="bilinear", antialias=True).round_().clamp_(0, 255)
    return images
