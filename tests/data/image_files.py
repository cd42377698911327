"""Small image files of every kind, made where they are needed."""

from __future__ import annotations

import io
import tarfile
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image


def encode(image: Image.Image, form: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def plain(colour: object = "red", size: tuple[int, int] = (8, 8), mode: str = "RGB") -> bytes:
    """A PNG of one colour."""
    return encode(Image.new(mode, size, colour))


def noise(width: int = 16, height: int = 16, seed: int = 0) -> Image.Image:
    """An image whose bytes cannot be cut short without being noticed."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def write_tree(root: Path, files: dict[str, bytes]) -> Path:
    """Writes ``files``, given by path, below ``root`` and returns it."""
    for path, content in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(content)
    return root


def write_zip(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def write_tar(path: Path, files: dict[str, bytes], compression: str = "") -> Path:
    with tarfile.open(path, f"w:{compression}") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path
