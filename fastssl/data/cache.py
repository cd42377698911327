"""Decoded images kept on disk, so that each is decoded once, and processes share its pages.

One file holds a set of images of one size: a line of JSON that says what it is of, a checksum of each image, which is 0
as long as it is not decoded, and the pixels from a whole page on. The file is made whole in its length, and put in its
place, when a set is first read; images are written to it as they are decoded, by whichever process needs them first. So
nothing is lost where a process is killed, and what others have decoded is there at once.

To start with it, its head is read and nothing else. An image is held to its checksum when it is first used by a
process: what is damaged is decoded again, and said. A file that was cut short, whose head is damaged, or that is of
images as they were once (`fastssl.data.sources.stamp` says what of a source is looked at), is made anew.
"""

from __future__ import annotations

import errno
import glob
import json
import os
import re
import struct
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor

from fastssl.data.decode import decoder
from fastssl.data.rows import InMemory, checksums
from fastssl.data.sources import one_line
from fastssl.errors import UserError
from fastssl.files import atomic_write

# Raise it when the layout of the file changes.
_FORMAT = 2
_MAGIC = b"fastssl images\r\n"
_PAGE = 4096
# After the magic: bytes of the JSON, images, side of an image; then a digest of these and the JSON.
_LENGTHS, _DIGEST = struct.Struct("<QQQ"), 16
_HEAD = len(_MAGIC) + _LENGTHS.size + _DIGEST
# Images that are held to their checksums at a time: bounds the copy of them.
_BLOCK = 1024
_SUFFIX = ".images"

_HOW_TO_REMOVE = "remove it whenever you like; --no_cache does without"


@dataclass(frozen=True)
class Cache:
    """A folder of decoded images. Whatever is in it may be removed at any time.

    Args:
        folder: made when it is needed.
        tell: is given a line on each thing that was found, kept or dropped, or could not be, and why.
        limit: the most bytes that its files may take; None for no limit. Before one is made that would not fit, those
            that were not used for longest are dropped, but none that a process is using; if there is still no room,
            it is not made.
    """

    folder: Path
    tell: Callable[[str], None] = lambda _: None
    limit: int | None = None

    def place(self, source: Path, size: int, scope: str) -> Path:
        """Where the images of ``source`` at ``size`` pixels are kept; ``scope`` says which of them.

        One place for all versions of a source, so that a new one replaces what is of no more use.
        """
        name = re.sub(r"[^\w.-]+", "_", source.stem, flags=re.ASCII)[:40] or "images"
        digest = blake2b(f"{source.resolve()}\0{scope}".encode(errors="surrogateescape"), digest_size=4).hexdigest()
        return self.folder / f"{name}-{size}px-{digest}{_SUFFIX}"

    def find(self, place: Path, stamp: str, fits: Callable[[dict[str, Any]], bool]) -> Kept | None:
        """What is kept in ``place``, if it is of images with this stamp, decoded as they would be now.

        And if ``fits`` says so of what was kept with them.
        """
        try:
            kept = _open(place, _key(stamp), fits, self.tell)
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
            with suppress(OSError):  # for what is dropped first where room is needed
                os.utime(place)
            self.tell(f"{_amount(kept)} from {place} ({_HOW_TO_REMOVE})")
        return kept

    def create(self, place: Path, stamp: str, about: dict[str, Any], count: int, size: int) -> Kept | None:
        """Room for ``count`` images of ``size`` pixels, none of which is there yet.

        Returns:
            None if that is not possible, which ``tell`` is told.
        """
        head = _head(_key(stamp), about, count, size)
        try:
            self._make_room(place, _length(len(head), count, size))
            with atomic_write(place) as partial, partial.open("wb") as file:
                _reserve(file, _length(len(head), count, size))
                file.write(head)
            kept = _open(place, _key(stamp), lambda _: True, self.tell)
        except (UserError, OSError, ValueError) as error:
            self.tell(f"the images are not kept for the next start: {error}")
            return None
        if kept is not None:
            self.tell(f"keeping {_amount(kept)} in {place} for the next start, as they are decoded ({_HOW_TO_REMOVE})")
        return kept

    @contextmanager
    def alone(self, place: Path) -> Iterator[None]:
        """Within it no other process makes a file in ``place``; waits for one that does.

        Where files cannot be locked nobody waits: each then makes its own, and the last one stays.
        """
        lock = FileLock(place.with_suffix(".lock"))
        with ExitStack() as held:
            with suppress(OSError, NotImplementedError):
                self.folder.mkdir(parents=True, exist_ok=True)
                lock.acquire()
                held.callback(lock.release)
                # before it is released: who waits has it open, and then finds what was made
                held.callback(Path(lock.lock_file).unlink, missing_ok=True)
                for partial in self.folder.glob(f".{glob.escape(place.name)}.*.tmp"):  # of one that was killed
                    partial.unlink(missing_ok=True)
            yield

    def usage(self) -> str:
        """How many sets there are, how much they take, and how much they may."""
        sizes = [size for size, _, _ in self._files()]
        limit = "no limit" if self.limit is None else f"at most {self.limit / 1e9:,.1f} GB"
        return f"{self.folder}: {len(sizes)} sets of images, {sum(sizes) / 1e9:,.1f} GB; {limit}"

    def _files(self) -> list[tuple[int, float, Path]]:
        """Bytes of each file, when it was last used, and its path; the one that was not used for longest first."""
        found = []
        with suppress(OSError):
            for path in self.folder.glob(f"*{_SUFFIX}"):
                with suppress(OSError):
                    status = path.stat()
                    found.append((status.st_size, status.st_mtime, path))
        return sorted(found, key=lambda file: file[1])

    def _make_room(self, place: Path, needed: int) -> None:
        """Drops files until ``needed`` bytes in ``place`` are within the limit.

        Raises:
            UserError: if they cannot be.
        """
        if self.limit is None:
            return
        others = [file for file in self._files() if file[2] != place]
        excess = sum(size for size, _, _ in others) + needed - self.limit
        for size, _, path in others if needed <= self.limit else ():
            if excess <= 0:
                break
            if _drop(path):
                excess -= size
                self.tell(f"dropped {path}, {size / 1e6:,.1f} MB, which was not used for longest, for want of room")
        if excess > 0:
            raise UserError(
                f"they would take {needed / 1e9:,.2f} GB, and --cache_limit leaves {(needed - excess) / 1e9:,.2f}: "
                "give a larger one"
            )


class Kept:
    """Images in a file of the cache; the contract is `fastssl.data.rows.InMemory`'s.

    Args:
        place: of the file.
        file: open for as long as this is, and locked against being dropped; images cannot be added to it if it is open
            for reading only.
        about: what was kept with them: plain values.
        sums: (N,) int64, mapped: the checksums, 0 where there is none yet.
        pixels: (N, 3, S, S) uint8, mapped: a page is read from the disk when it is first used.
        tell: is given a line on what is damaged, and if images can no longer be kept.
    """

    def __init__(
        self,
        place: Path,
        file: IO[bytes],
        about: dict[str, Any],
        sums: np.memmap[Any, np.dtype[np.int64]],
        pixels: np.memmap[Any, np.dtype[np.uint8]],
        tell: Callable[[str], None],
    ) -> None:
        self.about = about
        self._place, self._file, self._sums, self._tell = place, file, sums, tell
        self._sums_at, self._pixels_at = int(sums.offset), int(pixels.offset)
        self._mapped = torch.from_numpy(pixels)
        self._checked = np.zeros(len(sums), bool)
        self._writing = threading.Lock()
        self._memory: InMemory | None = None  # in place of the file, if that can no longer be written to

    def __del__(self) -> None:
        self._file.close()

    @property
    def pixels(self) -> Tensor:
        return self._mapped if self._memory is None else self._memory.pixels

    @property
    def written(self) -> int:
        """How many images are in the file, whole or damaged."""
        return int(np.count_nonzero(self._sums))

    def there(self, rows: np.ndarray) -> np.ndarray:
        """(n,) bool, which of the images at ``rows`` are there and as they were written."""
        if self._memory is not None:
            return self._memory.there(rows)
        unsure = rows[~self._checked[rows]]
        for start in range(0, len(unsure), _BLOCK):
            some = unsure[start : start + _BLOCK]
            known = np.array(self._sums[some])  # before the pixels, which were written first
            some, known = some[known != 0], known[known != 0]
            right = _sums(self._mapped[torch.from_numpy(some)]) == known
            self._checked[some[right]] = True
            if not right.all():
                self._tell(f"{self._place} is damaged ({(~right).sum()} images): decoding them anew")
        return np.array(self._checked[rows])

    def put(self, row: int, image: np.ndarray) -> None:
        """Adds an image, (S, S, 3) uint8; from any thread. Where the file cannot be written to, it is left for memory.

        Raises:
            UserError: if the memory does not hold all of them.
        """
        planes = np.ascontiguousarray(image.transpose(2, 0, 1))
        with self._writing:
            if self._memory is None:
                try:
                    self._write(planes, self._pixels_at + row * planes.nbytes)
                    self._write(_sums(torch.from_numpy(planes)[None]), self._sums_at + row * self._sums.itemsize)
                    self._checked[row] = True
                    return
                except OSError as error:
                    self._tell(f"no more images are kept for the next start: {one_line(error)}")
                    self._leave()
        assert self._memory is not None
        self._memory.put(row, image)

    def _write(self, values: np.ndarray, at: int) -> None:
        if not self._file.writable():
            raise OSError(errno.EROFS, f"{self._place} may not be written to")
        data = values.data.cast("B")
        while data:
            done = os.pwrite(self._file.fileno(), data, at)
            data, at = data[done:], at + done

    def _leave(self) -> None:
        memory = InMemory(len(self._checked), self._mapped.shape[-1])
        memory.take(self._mapped, self._checked)
        self._memory = memory


def _key(stamp: str) -> str:
    return f"{_FORMAT}; {decoder()}; {stamp}"


def _sums(images: Tensor) -> np.ndarray:
    """(n,) int64 of (n, 3, S, S) uint8 images, none of them 0, which is kept for those that are not there."""
    sums = checksums(images).numpy()
    return np.where(sums == 0, -1, sums)


def _amount(kept: Kept) -> str:
    count, size = len(kept.pixels), kept.pixels.shape[-1]
    many = f"{count:,}" if kept.written in (0, count) else f"{kept.written:,} of {count:,}"
    return f"{many} images of {size} x {size}, {kept.pixels.numel() / 1e6:,.1f} MB,"


def _head(key: str, about: dict[str, Any], count: int, size: int) -> bytes:
    """What stands before the checksums, to whole words."""
    text = json.dumps({"key": key, "about": about}).encode()
    lengths = _LENGTHS.pack(len(text), count, size)
    head = _MAGIC + lengths + _digest(lengths, text) + text
    return head + bytes(-len(head) % 8)


def _pixels_at(head: int, count: int) -> int:
    end = head + 8 * count
    return end + -end % _PAGE


def _length(head: int, count: int, size: int) -> int:
    return _pixels_at(head, count) + count * 3 * size * size


def _reserve(file: IO[bytes], length: int) -> None:
    """Makes a new file so long, of zeros, for which there is room on the disk."""
    if hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(file.fileno(), 0, length)
            return
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
                raise
    file.truncate(length)


def _open(place: Path, key: str, fits: Callable[[dict[str, Any]], bool], tell: Callable[[str], None]) -> Kept | None:
    """What the file holds, or None if it is of other images. Raises ValueError, or what comes of damage, for damage."""
    mode: Literal["r+", "c"] = "r+"
    try:
        file: IO[bytes] = place.open("r+b", 0)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise
        file, mode = place.open("rb", 0), "c"
    with ExitStack() as opened:
        opened.enter_context(file)
        _hold(file)
        head = file.read(_HEAD)
        if not head.startswith(_MAGIC):
            raise ValueError("it does not begin as it should")
        lengths, digest = head[len(_MAGIC) : -_DIGEST], head[-_DIGEST:]
        length, count, size = _LENGTHS.unpack(lengths)
        whole = os.fstat(file.fileno()).st_size
        if length > whole:
            raise ValueError("it is cut short")
        text = file.read(length)
        if _digest(lengths, text) != digest:
            raise ValueError("its head is not what was written")
        told = json.loads(text)
        if told["key"] != key or not fits(told["about"]):
            return None
        start = _HEAD + length + -(_HEAD + length) % 8
        if whole != _length(start, count, size):
            raise ValueError("it is cut short, or longer than it was")
        # shared: what another process adds shows here
        sums = np.memmap(file, np.int64, mode, start, (count,))
        pixels = np.memmap(file, np.uint8, mode, _pixels_at(start, count), (count, 3, size, size))
        kept = Kept(place, file, told["about"], sums, pixels, tell)
        opened.pop_all()
        return kept


def _digest(lengths: bytes, text: bytes) -> bytes:
    return blake2b(lengths + text, digest_size=_DIGEST).digest()


def _hold(file: IO[bytes], *, alone: bool = False) -> bool:
    """Marks an open file as in use; ``alone`` asks whether nobody else uses it. True where files cannot be locked."""
    if sys.platform == "win32":
        return True
    import fcntl

    try:
        fcntl.flock(file, (fcntl.LOCK_EX if alone else fcntl.LOCK_SH) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        pass
    return True


def _drop(path: Path) -> bool:
    """Removes a file of the cache; False if a process is using it, or it cannot be removed."""
    try:
        with path.open("rb") as file:
            if not _hold(file, alone=True):
                return False
            path.unlink()
    except OSError:
        return False
    return True
