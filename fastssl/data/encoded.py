"""Image files as a decoder is given them that knows JPEG, PNG and WebP and nothing of transparency: their bytes."""

from __future__ import annotations

import zlib
from dataclasses import dataclass

from PIL import Image

from fastssl.data.decode import ORIENTATION, opened, upright

_AS_IT_IS = 1

# Of a PNG: what turns it, or makes a colour transparent. Where any of these stand is not worth finding out.
_PNG_EXTRAS = (b"eXIf", b"Raw profile type", b"XML:com.adobe.xmp", b"tRNS")
_PNG_DEPTH = 24  # position of the bits a channel
_PNG = b"\x89PNG\r\n\x1a\n"

# Of a JPEG: what begins a segment, the kind of that before the pixels, and what ends these, in which it does not occur.
_MARKER, _SCAN, _END = 0xFF, 0xDA, b"\xff\xd9"


@dataclass(frozen=True)
class Encoded:
    """An image that is not decoded yet.

    Args:
        data: a whole file: JPEG, PNG, WebP or, of what is none of these or not plain, PPM.
        height: in pixels, of the image when it is upright.
        width: likewise.
    """

    data: bytes
    height: int
    width: int


def read_header(data: bytes) -> Encoded:
    """The image in ``data``, for a decoder of plain files.

    JPEG, PNG and WebP in 8-bit colour or grey stay as they are, and are not decoded: of a JPEG the segments before its
    pixels and its end are looked at, of a PNG all check sums, of a WebP its length. What is damaged farther in is not
    noticed. All else that ``decode.decode`` reads, and what is transparent, is decoded as it does; so is what does not
    look whole, to find out whether it can be, and to say why not, before a decoder does in words of its own.

    Raises:
        UnreadableError: saying why, if this is no image.
    """
    with opened(data) as image:
        if not (_is_plain(image, data) and _LOOKS_WHOLE[image.format or ""](data)):
            return _as_ppm(image)
        turned = image.format == "JPEG" and image.getexif().get(ORIENTATION, _AS_IT_IS) >= 5
        height, width = (image.width, image.height) if turned else (image.height, image.width)
        return Encoded(data, height, width)


def decode_whole(data: bytes) -> Encoded:
    """The image in ``data`` decoded by Pillow, upright and on white, as PPM.

    Raises:
        UnreadableError: saying why, for anything that is not a whole image.
    """
    with opened(data) as image:
        return _as_ppm(image)


def _is_plain(image: Image.Image, data: bytes) -> bool:
    if image.mode not in ("RGB", "L") or "transparency" in image.info:
        return False
    if image.format == "PNG":
        return data[_PNG_DEPTH] == 8 and not any(extra in data for extra in _PNG_EXTRAS)
    if image.format == "JPEG":
        known = image.getexif().get(ORIENTATION, _AS_IT_IS)
        return known == _AS_IT_IS or (known in range(1, 9) and "xmp" not in image.info)
    return image.format == "WEBP" and not {"exif", "xmp"} & image.info.keys()


def _is_whole_jpeg(data: bytes) -> bool:
    """Whether its segments follow each other up to its pixels, and something ends these."""
    at = 2
    while at + 4 <= len(data) and data[at] == _MARKER:
        kind = data[at + 1]
        if kind == _SCAN:
            return data.rfind(_END) > at
        length = int.from_bytes(data[at + 2 : at + 4], "big")
        if kind != _MARKER and length < 2:
            return False
        at += 1 if kind == _MARKER else 2 + length  # any number of these may stand before a kind
    return False


def _is_whole_png(data: bytes) -> bool:
    """Whether the check sums of its chunks are right, up to the last one."""
    at = len(_PNG)
    while at + 12 <= len(data):
        end = at + 8 + int.from_bytes(data[at : at + 4], "big")
        if zlib.crc32(data[at + 4 : end]) != int.from_bytes(data[end : end + 4], "big"):
            return False
        if data[at + 4 : at + 8] == b"IEND":
            return True
        at = end + 4
    return False


def _is_whole_webp(data: bytes) -> bool:
    return 8 + int.from_bytes(data[4:8], "little") <= len(data)


_LOOKS_WHOLE = {"JPEG": _is_whole_jpeg, "PNG": _is_whole_png, "WEBP": _is_whole_webp}


def _as_ppm(image: Image.Image) -> Encoded:
    whole = upright(image)
    header = b"P6 %d %d 255\n" % whole.size
    return Encoded(header + whole.tobytes(), whole.height, whole.width)
