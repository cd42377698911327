from __future__ import annotations

import io

import pytest
from image_files import encode, noise, plain
from PIL import Image

from fastssl.data.decode import UnreadableError
from fastssl.data.encoded import decode_whole, read_header


def turned(form: str, orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encode(noise(9, 5), form, exif=exif)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
def test_plain_files_stay_as_they_are(form: str) -> None:
    for image in (noise(9, 5), noise(9, 5).convert("L")):
        data = encode(image, form)
        found = read_header(data)
        assert found.data is data
        assert (found.height, found.width) == (5, 9)


@pytest.mark.parametrize(("orientation", "sides"), [(1, (5, 9)), (3, (5, 9)), (6, (9, 5)), (9, (5, 9))])
def test_sides_are_those_of_the_upright_image(orientation: int, sides: tuple[int, int]) -> None:
    for form in ("JPEG", "PNG", "WEBP"):
        found = read_header(turned(form, orientation))
        assert (found.height, found.width) == sides


@pytest.mark.parametrize(
    "data",
    [
        encode(noise(), "GIF"),
        encode(noise(), "TIFF"),
        encode(noise().convert("RGBA")),
        encode(noise().convert("LA")),
        encode(noise().convert("P")),
        encode(noise().convert("CMYK"), "JPEG"),
        encode(noise().convert("1")),
        encode(noise(), transparency=(1, 2, 3)),
        turned("PNG", 6),
        turned("WEBP", 6),
    ],
)
def test_what_is_not_plain_is_decoded_here(data: bytes) -> None:
    found = read_header(data)
    assert found == decode_whole(data)
    with Image.open(io.BytesIO(found.data)) as image:
        assert (image.format, image.mode) == ("PPM", "RGB")
        assert (image.height, image.width) == (found.height, found.width)


def test_transparent_pixels_are_white() -> None:
    with Image.open(io.BytesIO(read_header(plain((9, 9, 9, 0), mode="RGBA")).data)) as image:
        assert image.getextrema() == ((255, 255),) * 3


@pytest.mark.parametrize("data", [b"", b"no image", encode(noise(), "GIF")[:40]])
def test_what_is_no_image_is_refused(data: bytes) -> None:
    for read in (read_header, decode_whole):
        with pytest.raises(UnreadableError):
            read(data)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
def test_what_is_cut_off_is_found_without_decoding_what_is_whole(form: str) -> None:
    data = encode(noise(64, 64), form)
    for share in (0.5, 0.9, 0.99):
        with pytest.raises(UnreadableError, match=r"damaged|not an image"):
            read_header(data[: int(share * len(data))])


def test_what_looks_odd_and_is_whole_stays_as_it_is() -> None:
    data = encode(noise(64, 64), "JPEG")
    assert read_header(data + b"and more").data == data + b"and more"
    filled = data[:2] + b"\xff\xff" + data[2:]  # bytes that may stand between segments
    assert read_header(filled).data is filled
