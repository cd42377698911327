"""Masks of objects as PNG files: one number a pixel, 0 where there is none, as DAVIS has them."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fastssl.data.decode import MAX_PIXELS, UnreadableError
from fastssl.data.sources import one_line

# What DAVIS's annotators left open: no object, and not scored.
VOID = 255

_MOST_COLOURS = 254  # of a mask whose objects are told by colour; a photograph has more


def _davis_palette() -> bytes:
    """Pascal VOC's colours: the bits of a number, from the lowest on, are the high bits of red, green and blue."""
    table = np.zeros((256, 3), np.uint8)
    for number in range(256):
        for bit in range(8):
            table[number, bit % 3] |= (number >> bit & 1) << (7 - bit // 3)
    return table.tobytes()


PALETTE = _davis_palette()


@dataclass(frozen=True)
class Mask:
    """Which object each pixel shows.

    Args:
        values: (H, W) uint8: 0 for none, ``VOID`` for what is left open, any other number an object.
        palette: the objects' colours: 256 times red, green and blue.
    """

    values: Tensor
    palette: bytes = PALETTE

    @property
    def objects(self) -> list[int]:
        """The numbers of the objects in it, ascending."""
        return [value for value in torch.unique(self.values).tolist() if value not in (0, VOID)]


def read_mask(path: Path) -> Mask:
    """The mask in an image file.

    With a palette, its numbers. Of a grey one (as DAVIS 2016 has them) the levels, black and white alone meaning one
    object. Of a coloured one, each colour but black is an object, numbered in the order of the colours.

    Raises:
        UnreadableError: saying why, if it is no mask.
    """
    try:
        with Image.open(path) as image:
            if image.width * image.height > MAX_PIXELS:
                raise UnreadableError(f"{image.width} x {image.height} pixels are more than the {MAX_PIXELS} allowed")
            if image.mode == "P":
                palette = bytes(image.getpalette("RGB") or PALETTE)
                return Mask(_tensor(image), palette + PALETTE[len(palette) :])
            if image.mode in ("1", "L"):
                values = _tensor(image.convert("L"))
                black_and_white = set(torch.unique(values).tolist()) <= {0, VOID}
                return Mask((values > 0).byte() if black_and_white else values)
            return _by_colour(np.asarray(image.convert("RGB")))
    except UnreadableError:
        raise
    except Exception as error:  # what a damaged file makes Pillow raise may be anything
        raise UnreadableError(f"no image that can be read: {one_line(error)}") from error


def write_mask(mask: Mask, file: Path) -> None:
    """Writes a PNG with a palette, whose numbers are the mask's.

    Raises:
        OSError: if the file system refuses.
    """
    image = Image.fromarray(mask.values.numpy(), "L")
    image.putpalette(mask.palette)
    data = io.BytesIO()
    image.save(data, "PNG")
    file.write_bytes(data.getvalue())


def _tensor(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image, dtype=np.uint8))


def _by_colour(pixels: np.ndarray) -> Mask:
    """pixels: (H, W, 3) uint8."""
    codes = pixels.astype(np.int64) @ np.array([1 << 16, 1 << 8, 1])
    colours, numbers = np.unique(codes, return_inverse=True)
    begin = 0 if colours[0] == 0 else 1  # black is no object, and has the number 0 where there is any
    if len(colours) + begin > _MOST_COLOURS:
        raise UnreadableError(f"a picture of {len(colours)} colours is no mask, which has one for each object")
    table = np.zeros((256, 3), np.uint8)
    for i, code in enumerate(colours.tolist(), start=begin):
        table[i] = code >> 16, code >> 8 & 255, code & 255
    values = torch.from_numpy((numbers.reshape(codes.shape) + begin).astype(np.uint8))
    return Mask(values, table.tobytes())
