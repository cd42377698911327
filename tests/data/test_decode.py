from __future__ import annotations

import io
import struct
import zlib
from contextlib import suppress

import numpy as np
import pytest
from image_files import encode, noise, plain
from PIL import Image

from fastssl.data.decode import MAX_PIXELS, UnreadableError, decode

RED = [255, 0, 0]
WHITE = [255, 255, 255]


def centre(data: bytes, size: int = 8) -> list[int]:
    pixels = decode(data, size)
    assert pixels.shape == (size, size, 3)
    assert pixels.dtype == np.uint8
    return pixels[size // 2, size // 2].tolist()


def palette_with_transparency() -> bytes:
    image = Image.new("P", (8, 8), 1)
    image.putpalette([0, 0, 0, 255, 0, 0])
    image.paste(0, (0, 0, 4, 8))
    return encode(image, transparency=0)


def animation(form: str) -> bytes:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    return encode(
        frames[0], form, save_all=True, append_images=frames[1:], duration=50, loop=0, **LOSSLESS.get(form, {})
    )


LOSSLESS = {"WEBP": {"lossless": True}}


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (plain("red"), RED),
        (plain(100, mode="L"), [100] * 3),
        (plain(1, mode="1"), WHITE),
        (plain((255, 0, 0, 255), mode="RGBA"), RED),
        (plain((255, 0, 0, 0), mode="RGBA"), WHITE),
        (plain((0, 0, 0, 127), mode="RGBA"), [128] * 3),
        (plain((0, 0), mode="LA"), WHITE),
        (encode(Image.new("L", (8, 8), 7), transparency=7), WHITE),
        (palette_with_transparency(), RED),
        (encode(Image.fromarray(np.full((8, 8), 30_000, np.uint16))), [116] * 3),
        (encode(Image.fromarray(np.full((8, 8), 65_535, np.uint16)), "TIFF"), WHITE),
        (encode(Image.new("CMYK", (8, 8), (0, 0, 0, 255)), "TIFF"), [0] * 3),
        (encode(Image.new("CMYK", (8, 8), (0, 0, 0, 0)), "JPEG"), WHITE),
        (encode(Image.new("L", (8, 8), 90), "JPEG"), [90] * 3),
        (encode(Image.new("RGB", (8, 8), "red"), "GIF"), RED),
        (encode(Image.new("RGB", (8, 8), "red"), "BMP"), RED),
        (encode(Image.new("RGB", (8, 8), "red"), "PPM"), RED),
        (animation("GIF"), RED),
        (animation("WEBP"), RED),
        (animation("PNG"), RED),
    ],
)
def test_every_kind_of_image_becomes_rgb_on_white(data: bytes, expected: list[int]) -> None:
    assert centre(data) == expected


def test_transparent_pixels_of_a_palette_are_white() -> None:
    assert decode(palette_with_transparency(), 8)[0, 0].tolist() == WHITE


def test_an_image_of_the_right_size_is_left_as_it_is() -> None:
    image = noise()
    assert np.array_equal(decode(encode(image), 16), np.asarray(image))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_turned_upright(orientation: int) -> None:
    upright = Image.new("RGB", (32, 32), "white")
    upright.paste("black", (0, 0, 16, 16))
    stored = {
        1: upright,
        2: upright.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
        3: upright.transpose(Image.Transpose.ROTATE_180),
        4: upright.transpose(Image.Transpose.FLIP_TOP_BOTTOM),
        5: upright.transpose(Image.Transpose.TRANSPOSE),
        6: upright.transpose(Image.Transpose.ROTATE_90),
        7: upright.transpose(Image.Transpose.TRANSVERSE),
        8: upright.transpose(Image.Transpose.ROTATE_270),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels = decode(encode(stored, "JPEG", exif=exif, quality=95), 32)[..., 0]
    assert pixels[:14, :14].max() < 64
    assert min(pixels[18:].min(), pixels[:, 18:].min()) > 192


@pytest.mark.parametrize("shape", [(1, 1), (5000, 1), (1, 5000), (3, 2), (300, 200)])
def test_every_shape_is_cut_to_its_centre(shape: tuple[int, int]) -> None:
    assert centre(plain("red", shape), 16) == RED


def test_the_centre_of_a_wide_image_is_kept() -> None:
    image = Image.new("RGB", (90, 30), "white")
    image.paste("red", (30, 0, 60, 30))
    pixels = decode(encode(image), 10)
    assert (pixels[:, 1:9] == RED).all()


def test_a_large_jpeg_is_reduced_to_the_same_picture() -> None:
    x = np.linspace(0, 255, 800).astype(np.uint8)
    image = Image.fromarray(np.broadcast_to(x[None, :, None], (800, 800, 3)).copy())
    pixels = decode(encode(image, "JPEG", quality=95), 20).astype(int)
    assert np.abs(pixels - np.asarray(image.resize((20, 20), Image.Resampling.BOX))).max() <= 4


def test_empty_and_foreign_files_are_named_for_what_they_are() -> None:
    with pytest.raises(UnreadableError, match="empty"):
        decode(b"", 8)
    for data in (b"just some text", b"\0" * 100, b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n"):
        with pytest.raises(UnreadableError, match="not an image"):
            decode(data, 8)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM"])
@pytest.mark.parametrize("share", [0.02, 0.5, 0.9])
def test_truncated_files_are_unreadable(form: str, share: float) -> None:
    data = encode(noise(64, 64), form)
    with pytest.raises(UnreadableError):
        decode(data[: int(share * len(data))], 16)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_damage_is_an_error_of_one_kind_or_an_image() -> None:
    rng = np.random.default_rng(0)
    for form in ("JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP"):
        data = np.frombuffer(encode(noise(24, 24), form), np.uint8)
        for _ in range(25):
            damaged = data.copy()
            damaged[rng.integers(0, len(data), 8)] = rng.integers(0, 256, 8)
            with suppress(UnreadableError):
                assert decode(damaged.tobytes(), 8).shape == (8, 8, 3)


def bomb(side: int) -> bytes:
    """A PNG header that claims ``side`` x ``side`` pixels, with next to nothing behind it."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 99)) + chunk(b"IEND", b"")
    )


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("side", [int(MAX_PIXELS**0.5) + 1, 60_000])
def test_decompression_bombs_are_refused_before_they_are_decoded(side: int) -> None:
    with pytest.raises(UnreadableError, match="pixels"):
        decode(bomb(side), 8)


def test_floating_point_pixels_are_refused() -> None:
    with pytest.raises(UnreadableError, match="floating-point"):
        decode(encode(Image.new("F", (4, 4), 0.5), "TIFF"), 8)


def test_the_file_given_is_not_needed_afterwards() -> None:
    buffer = io.BytesIO(plain("red"))
    pixels = decode(buffer.getvalue(), 8)
    buffer.close()
    assert pixels.sum() == 255 * 64
