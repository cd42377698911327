"""A thousand damaged files: none of them crashes or hangs what reads it, and each is used or named."""

from __future__ import annotations

import faulthandler
import io
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from dali_helpers import photo
from image_files import encode, write_tar, write_tree

from fastssl.data import plans
from fastssl.data.decode import UnreadableError, decode_full
from fastssl.data.images import load_all, stream
from fastssl.data.sources import list_images
from fastssl.data.stream import StreamLoader
from fastssl.errors import UserError

pytestmark = pytest.mark.filterwarnings("ignore")  # Pillow's on odd files, and ours that name each

IMAGES, ZIPS, TARS = 600, 200, 200


@pytest.fixture(autouse=True)
def no_hang() -> Iterator[None]:
    """Ends the process, telling where it was, after two minutes: a decoder in C would hear no signal handler."""
    faulthandler.dump_traceback_later(120, exit=True, file=sys.__stderr__)
    yield
    faulthandler.cancel_dump_traceback_later()


def damaged(data: bytes, rng: np.random.Generator) -> bytes:
    """Cut short, with bytes changed, put in, left out or zeroed."""
    start = int(rng.integers(len(data)))
    end = start + 1 + int(rng.integers(40))
    kind = rng.integers(5)
    if kind == 0:
        return data[:start]
    if kind == 1:
        changed = bytearray(data)
        for place in rng.integers(0, len(data), int(rng.integers(1, 9))).tolist():
            changed[place] = int(rng.integers(256))
        return bytes(changed)
    middle = {2: data[start:end] + rng.bytes(end - start), 3: b"", 4: bytes(len(data[start:end]))}[int(kind)]
    return data[:start] + middle + data[end:]


KINDS: tuple[Callable[[int], bytes], ...] = (
    lambda i: encode(photo(i, 24, 36), "JPEG"),
    lambda i: encode(photo(i, 24, 36), "JPEG", progressive=True, optimize=True),
    lambda i: encode(photo(i, 24, 36)),
    lambda i: encode(photo(i, 24, 36).quantize(16), transparency=3),
    lambda i: encode(photo(i, 24, 36), "WEBP"),
    lambda i: encode(photo(i, 24, 36), "WEBP", lossless=True),
    lambda i: encode(photo(i, 24, 36).quantize(64), "GIF"),
    lambda i: encode(photo(i, 24, 36), "BMP"),
    lambda i: encode(photo(i, 24, 36), "TIFF", compression="tiff_lzw"),
    lambda i: encode(photo(i, 24, 36), "TIFF"),
    lambda i: encode(photo(i, 24, 36), "PPM"),
)


def is_readable(data: bytes) -> bool:
    try:
        decode_full(data)
    except UnreadableError:
        return False
    return True


def test_damaged_images_are_used_or_named(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    contents = {f"{i:03}.jpg": damaged(KINDS[i % len(KINDS)](i), rng) for i in range(IMAGES)}
    source = str(write_tree(tmp_path, contents))
    loaded = load_all(source, size=16, max_skipped=1.0)
    named = {item.name for item in loaded.skipped}
    assert all(item.reason for item in loaded.skipped)
    assert len(loaded.names) + len(loaded.skipped) == IMAGES
    assert set(loaded.names) | named == set(contents)
    assert named == {name for name, data in contents.items() if not is_readable(data)}
    assert 100 < len(named) < 500  # of either kind there are many

    listing = list_images(tmp_path)
    with StreamLoader(listing, plans.eval(16), 50, 0, max_skipped=1.0) as loader:
        for epoch in (0, 1):
            for (view,) in loader.epoch(epoch):
                assert bool(view.isfinite().all())
    assert {item.name for item in loader.skipped} == named
    assert len(loader.skipped) == len(named)


def used_or_named(path: Path, *, single: bool) -> bool:
    """Whether an archive can be read at all; makes sure that each of its images is used or named, or the archive is."""
    refused = ""
    try:
        with closing(list_images(path)) as listing:
            names = {entry.name for entry in listing.entries} | {item.name for item in listing.skipped}
        loaded = load_all(str(path), size=8, max_skipped=1.0)
    except UserError as error:
        refused = str(error)
    if refused:
        assert str(path) in refused
        assert "\n" not in refused
        return False
    assert set(loaded.names) | {item.name for item in loaded.skipped} == names
    assert len(loaded.names) + len(loaded.skipped) == len(names)
    if single:
        streamed = stream(str(path), size=8, max_skipped=1.0).train
        pixels = streamed.images[:]
        white = {streamed.names[i] for i in range(len(streamed)) if bool((pixels[i] == 255).all())}
        assert {item.name for item in streamed.skipped if item.name in streamed.names} == white
        assert set(streamed.names) - white == set(loaded.names)
    return True


def packed(kind: str, i: int) -> bytes:
    content = {f"{k}.png": encode(photo(5 * i + k, 12, 12)) for k in range(4)} | {"a/5.jpg": KINDS[0](i)}
    buffer = io.BytesIO()
    if kind in ("stored", "deflated"):
        how = zipfile.ZIP_STORED if kind == "stored" else zipfile.ZIP_DEFLATED
        with zipfile.ZipFile(buffer, "w", how) as archive:
            for name, data in content.items():
                archive.writestr(name, data)
        return buffer.getvalue()
    with tarfile.open(fileobj=buffer, mode=f"w:{kind}") as tar:
        for name, data in content.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("kinds", "count", "single"),
    [(("stored", "deflated"), ZIPS, True), (("",), TARS // 2, True), (("gz", "bz2", "xz"), TARS // 2, False)],
    ids=["zip", "tar", "compressed tar"],
)
def test_damaged_archives_are_used_or_named(kinds: tuple[str, ...], count: int, single: bool, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    path, readable = tmp_path / "archive", 0
    for i in range(count):
        path.write_bytes(damaged(packed(kinds[i % len(kinds)], i), rng))
        readable += used_or_named(path, single=single)
    assert 0 < readable < count


def with_header(path: Path, header: bytes) -> Path:
    """A tar with two images and something between them that should be a header."""
    first, last = (write_tar(path, {name: encode(photo(0))}).read_bytes() for name in ("1.png", "2.png"))
    path.write_bytes(first.rstrip(b"\0").ljust(-(-len(first.rstrip(b"\0")) // 512) * 512, b"\0") + header + last)
    return path


def test_a_tar_that_leads_back_to_its_beginning_is_refused(tmp_path: Path) -> None:
    member = tarfile.TarInfo("back.png")
    member.size = -1024
    path = with_header(tmp_path / "loop.tar", member.tobuf(tarfile.GNU_FORMAT))
    with pytest.raises(UserError, match=r"cannot read .*loop\.tar' \(a damaged header: a negative size\)"):
        list_images(path)


def test_images_behind_a_damaged_header_of_a_tar_are_not_lost_silently(tmp_path: Path) -> None:
    path = with_header(tmp_path / "cut.tar", b"x" * 512)
    with pytest.raises(UserError, match=r"cannot read .*cut\.tar' \(a damaged header"):
        list_images(path)
    whole = with_header(path, b"").read_bytes()
    assert len(list_images(path).entries) == 2
    end = whole.rindex(b"2.png")
    path.write_bytes(whole[: end + 100])
    with pytest.raises(UserError, match=r"a damaged header: truncated header"):
        list_images(path)
