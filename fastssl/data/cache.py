"""Decoded images kept on disk, so that only the first start on a data set decodes it, and processes share its pages.

One file holds a set of images of one size: a line of JSON that says what it is of, a checksum of each image, and the
pixels from a whole page on, which are mapped into memory and not read. It is written beside its place and renamed, so
that it is whole or not there, and is only used where its key is that of the images now.
"""

from __future__ import annotations

import glob
import json
import re
import struct
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import torch
from filelock import FileLock, Timeout
from torch import Tensor

from fastssl.data.decode import decoder
from fastssl.data.rows import checksums
from fastssl.data.sources import one_line
from fastssl.errors import UserError
from fastssl.files import atomic_write

# Raise it when the layout of the file changes.
_FORMAT = 1
_MAGIC = b"fastssl images\r\n"
_PAGE = 4096
# After the magic: bytes of the JSON, images, side of an image; then a digest of the JSON and the checksums.
_LENGTHS = struct.Struct("<QQQ16s")

_HOW_TO_REMOVE = "remove it whenever you like; --no_cache does without"


class Kept(NamedTuple):
    """A set of images in the cache.

    Args:
        about: what was kept with them: plain values.
        pixels: (N, 3, S, S) uint8, mapped: a page is read from the disk when it is first used, and what is written to
            it stays in this process.
        sums: (N,) int64, ``rows.checksums(pixels)``, of which it was made sure.
    """

    about: dict[str, Any]
    pixels: Tensor
    sums: Tensor


@dataclass(frozen=True)
class Cache:
    """A folder of decoded images. Whatever is in it may be removed at any time.

    Args:
        folder: made when it is needed.
        tell: is given a line on each thing that was found or kept, or could not be, and why.
    """

    folder: Path
    tell: Callable[[str], None] = lambda _: None

    def place(self, source: Path, size: int, scope: str) -> Path:
        """Where the images of ``source`` at ``size`` pixels are kept; ``scope`` says which of them.

        One place for all versions of a source, so that a new one replaces what is of no more use.
        """
        name = re.sub(r"[^\w.-]+", "_", source.stem, flags=re.ASCII)[:40] or "images"
        digest = blake2b(f"{source.resolve()}\0{scope}".encode(errors="surrogateescape"), digest_size=4).hexdigest()
        return self.folder / f"{name}-{size}px-{digest}.images"

    def find(self, place: Path, stamp: str, fits: Callable[[dict[str, Any]], bool]) -> Kept | None:
        """What is kept in ``place``, if it is whole and of images with this stamp, decoded as they would be now.

        And if ``fits`` says so of what was kept with them.
        """
        try:
            with place.open("rb") as file:
                kept = _read(file, _key(stamp), fits)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            self.tell(f"{place} cannot be read ({one_line(error)}): reading the images anew")
            return None
        except (ValueError, KeyError, TypeError, AttributeError, struct.error) as error:
            self.tell(f"{place} is damaged ({error}): reading the images anew")
            with suppress(OSError):
                place.unlink()
            return None
        if kept is not None:
            self.tell(f"{_amount(kept.pixels)} from {place} ({_HOW_TO_REMOVE})")
        return kept

    def keep(self, place: Path, stamp: str, about: dict[str, Any], images: Tensor) -> Kept | None:
        """Keeps ``images`` (N, 3, S, S) uint8; None if that is not possible, which ``tell`` is told."""
        try:
            with atomic_write(place) as partial, partial.open("wb") as file:
                _write(file, _key(stamp), about, images)
            with place.open("rb") as file:
                kept = _read(file, _key(stamp), lambda _: True)
        except (UserError, OSError, ValueError) as error:
            self.tell(f"the images are not kept for the next start: {error}")
            return None
        self.tell(f"kept {_amount(images)} in {place} for the next start ({_HOW_TO_REMOVE})")
        return kept

    @contextmanager
    def alone(self, place: Path) -> Iterator[None]:
        """Within it no other process reads what will be in ``place``; waits for one that does.

        Where files cannot be locked nobody waits: each then decodes for itself, and the last to end is what is kept.
        """
        lock = FileLock(place.with_suffix(".lock"))
        with ExitStack() as held:
            with suppress(OSError, NotImplementedError):
                self.folder.mkdir(parents=True, exist_ok=True)
                try:
                    lock.acquire(timeout=0)
                except Timeout:
                    self.tell("another process is reading the same images: waiting for it")
                    lock.acquire()
                held.callback(lock.release)
                # before it is released: who waits has it open, and then finds what was kept
                held.callback(Path(lock.lock_file).unlink, missing_ok=True)
                for partial in self.folder.glob(f".{glob.escape(place.name)}.*.tmp"):  # of one that was killed
                    partial.unlink(missing_ok=True)
            yield


def _key(stamp: str) -> str:
    return f"{_FORMAT}; {decoder()}; {stamp}"


def _amount(images: Tensor) -> str:
    size, megabytes = images.shape[-1], images.numel() / 1e6
    return f"{len(images):,} images of {size} x {size}, {megabytes:,.1f} MB,"


def _write(file: IO[bytes], key: str, about: dict[str, Any], images: Tensor) -> None:
    text = json.dumps({"key": key, "about": about}).encode()
    sums = checksums(images).numpy().tobytes()
    file.write(_MAGIC + _LENGTHS.pack(len(text), len(images), images.shape[-1], _digest(text, sums)) + text + sums)
    file.write(b"\0" * (-file.tell() % _PAGE))
    file.write(images.contiguous().numpy().data)


def _read(file: IO[bytes], key: str, fits: Callable[[dict[str, Any]], bool]) -> Kept | None:
    """What the file holds, or None if it is of other images. Raises ValueError, or what comes of damage, for damage."""
    if file.read(len(_MAGIC)) != _MAGIC:
        raise ValueError("it does not begin as it should")
    length, count, size, digest = _LENGTHS.unpack(file.read(_LENGTHS.size))
    whole = file.seek(0, 2)
    if max(length, 8 * count, count * 3 * size * size) > whole:
        raise ValueError("it is cut short")
    file.seek(len(_MAGIC) + _LENGTHS.size)
    text, sums = file.read(length), file.read(8 * count)
    if _digest(text, sums) != digest:
        raise ValueError("its head is not what was written")
    told = json.loads(text)
    if told["key"] != key or not fits(told["about"]):
        return None
    start = file.tell() + -file.tell() % _PAGE
    if whole != start + count * 3 * size * size:
        raise ValueError("it is cut short")
    # copy on write: pages are the file's own, shared by all, until somebody writes to them
    pixels = torch.from_numpy(np.memmap(file, np.uint8, "c", start, (count, 3, size, size)))
    known = torch.from_numpy(np.frombuffer(sums, np.int64).copy())
    if not torch.equal(checksums(pixels), known):
        raise ValueError("its pixels are not what was written")
    return Kept(told["about"], pixels, known)


def _digest(text: bytes, sums: bytes) -> bytes:
    return blake2b(text + sums, digest_size=16).digest()
