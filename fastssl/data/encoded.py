"""Image files as a decoder is given them that knows JPEG, PNG and WebP and nothing of transparency: their bytes."""

from __future__ import annotations

from dataclasses import dataclass

from PIL import Image

from fastssl.data.decode import ORIENTATION, opened, upright

_AS_IT_IS = 1

# Of a PNG: what turns it, or makes a colour transparent. Where any of these stand is not worth finding out.
_PNG_EXTRAS = (b"eXIf", b"Raw profile type", b"XML:com.adobe.xmp", b"tRNS")
_PNG_DEPTH = 24  # position of the bits a channel


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

    JPEG, PNG and WebP in 8-bit colour or grey stay as they are, and only their header is read: a file that is damaged
    farther on is not noticed. All else that ``decode.decode`` reads, and what is transparent, is decoded as it does.

    Raises:
        UnreadableError: saying why, if this is no image.
    """
    with opened(data) as image:
        if not _is_plain(image, data):
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


def _as_ppm(image: Image.Image) -> Encoded:
    whole = upright(image)
    header = b"P6 %d %d 255\n" % whole.size
    return Encoded(header + whole.tobytes(), whole.height, whole.width)
