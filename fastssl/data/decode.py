"""Bytes of an image file to RGB pixels of one size, whatever was saved and however badly."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import PIL
from PIL import Image, ImageOps, UnidentifiedImageError, features

# What is read, by Pillow's names and by suffix. Formats that run other programs or read other files are left out.
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
SUFFIXES = frozenset(
    (".jpg", ".jpeg", ".jfif", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm")
)

# Raise it when `decode` makes other pixels of the same file.
_DECODING = 1
_LIBRARIES = ("libjpeg_turbo", "jpg", "webp", "libtiff")

ORIENTATION = 0x0112  # EXIF's tag

# A larger image is refused before any pixel is decoded: a few bytes can claim to hold a picture of many gigabytes.
MAX_PIXELS = 100_000_000


class UnreadableError(Exception):
    """A file that holds no image that can be used; the message is the reason."""


def decode(data: bytes, size: int) -> np.ndarray:
    """The image in ``data``: upright, on white, its short side resized to ``size`` and its centre cut out.

    Of an animation the first frame is taken; 16-bit samples are reduced to 8.

    Args:
        data: a whole image file.
        size: side of the result, in pixels.

    Returns:
        (size, size, 3) uint8, RGB.

    Raises:
        UnreadableError: saying why, for anything that is not a whole image.
    """
    with opened(data) as image:
        # A JPEG is decoded at the nearest half, quarter or eighth that still has pixels to spare.
        image.draft(None, (2 * size, 2 * size))
        return np.asarray(centre(upright(image), size))


def decode_full(data: bytes) -> np.ndarray:
    """The image in ``data`` in its own size, upright and on white: (H, W, 3) uint8, RGB. Raises as ``decode`` does."""
    with opened(data) as image:
        return np.asarray(upright(image))


def sides(data: bytes) -> tuple[int, int]:
    """Height and width that ``decode_full`` would give, as the header tells them: before any pixel is decoded.

    A file may turn out otherwise: one that tells its orientation in XMP, or behind its pixels, or is cut short.

    Raises:
        UnreadableError: saying why, if this is no image.
    """
    with opened(data) as image:
        # of a TIFF Pillow tells the upright sides; a PNG without EXIF before its pixels it would decode to find out
        told = "exif" in image.info and image.format != "TIFF"
        turned = told and image.getexif().get(ORIENTATION) in (5, 6, 7, 8)
        return (image.width, image.height) if turned else (image.height, image.width)


def decoder() -> str:
    """What pixels depend on besides the file: this module's and the libraries' versions."""
    found = {name: features.version(name) for name in _LIBRARIES}
    return f"{_DECODING}, Pillow {PIL.__version__}, {found}"


@contextmanager
def opened(data: bytes) -> Iterator[Image.Image]:
    """The image in ``data``, of which only the header is read yet; whatever fails within is an ``UnreadableError``."""
    if not data:
        raise UnreadableError("the file is empty")
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise UnreadableError(f"{image.width} x {image.height} pixels are more than the {MAX_PIXELS} allowed")
            yield image
    except UnreadableError:
        raise
    except UnidentifiedImageError:
        raise UnreadableError("not an image in a format that can be read") from None
    except Exception as error:  # a decoder given damaged bytes may raise anything
        raise UnreadableError(f"damaged: {' '.join(str(error).split()) or type(error).__name__}") from error


def upright(image: Image.Image) -> Image.Image:
    """All pixels, turned as EXIF says, RGB, on white."""
    return on_white(ImageOps.exif_transpose(image))


def on_white(image: Image.Image) -> Image.Image:
    """RGB, with whatever is transparent showing white."""
    if image.mode == "F":
        raise UnreadableError("floating-point pixels have no defined white: save it with 8 or 16 bits")
    if image.mode.startswith("I"):
        sixteen_bit = np.asarray(image).astype(np.int64).clip(0, 65535)
        image = Image.fromarray((sixteen_bit // 257).astype(np.uint8))
    if "A" in image.mode or "a" in image.mode or "transparency" in image.info:
        layer = image.convert("RGBA")
        image = Image.new("RGBA", layer.size, "white")
        image.alpha_composite(layer)
    return image.convert("RGB")


def centre(image: Image.Image, size: int) -> Image.Image:
    """The short side resized to ``size`` and the centre cut out, antialiased.

    Cuts before it resizes, so that a very long image never becomes a very large one.
    """
    side = min(image.size)
    left, top = (image.width - side) / 2, (image.height - side) / 2
    if image.size == (size, size):
        return image
    box = (left, top, left + side, top + side)
    return image.resize((size, size), Image.Resampling.BILINEAR, box=box, reducing_gap=3.0)
