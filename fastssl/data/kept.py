"""A file of decoded images, which processes share: its layout, and what is held to its checksums.

One file holds a set of images of one size: a line of JSON that says what it is of, a checksum of each image, which is 0
as long as it is not decoded, and the pixels from a whole page on. The file is made whole in its length; images are
written to it as they are decoded, by whichever process needs them first. So nothing is lost where a process is killed,
and what others have decoded is there at once.

To start with it, its head is read and nothing else. An image is held to its checksum when it is first used by a
process: what is damaged is decoded again, and said.
"""

from __future__ import annotations

import errno
import json
import os
import struct
import sys
import threading
from collections.abc import Callable
from contextlib import ExitStack
from hashlib import blake2b
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
import torch
from torch import Tensor

from fastssl.data.decode import decode, decoder
from fastssl.data.rows import InMemory, checksums
from fastssl.data.sources import one_line
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

# What reading a damaged file may raise.
DAMAGE = (ValueError, KeyError, TypeError, AttributeError, struct.error)


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

    def __str__(self) -> str:
        count, size = len(self.pixels), self.pixels.shape[-1]
        many = f"{count:,}" if self.written in (0, count) else f"{self.written:,} of {count:,}"
        return f"{many} images of {size} x {size}, {self.pixels.numel() / 1e6:,.1f} MB"

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

    def add(self, row: int, data: bytes) -> None:
        """Adds the image of a file, given its bytes; from any thread. Where this cannot be written, memory takes over.

        Raises:
            UnreadableError: if they are of no image.
            UserError: if the memory does not hold all of them.
        """
        self._put(row, np.ascontiguousarray(decode(data, self._mapped.shape[-1]).transpose(2, 0, 1)))

    def _put(self, row: int, planes: np.ndarray) -> None:
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
        self._memory.put(row, planes)

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


def key_of(stamp: str) -> str:
    """Of images with this stamp, decoded as they would be now."""
    return f"{_FORMAT}; {decoder()}; {stamp}"


def write_empty(place: Path, head: bytes, length: int) -> None:
    """A file with that head, so long, in place of any other."""
    with atomic_write(place) as partial, partial.open("wb") as file:
        _reserve(file, length)
        file.write(head)


def _sums(images: Tensor) -> np.ndarray:
    """(n,) int64 of (n, 3, S, S) uint8 images, none of them 0, which is kept for those that are not there."""
    sums = checksums(images).numpy()
    return np.where(sums == 0, -1, sums)


def head_of(key: str, about: dict[str, Any], count: int, size: int) -> bytes:
    """What stands before the checksums, to whole words."""
    text = json.dumps({"key": key, "about": about}).encode()
    lengths = _LENGTHS.pack(len(text), count, size)
    head = _MAGIC + lengths + _digest(lengths, text) + text
    return head + bytes(-len(head) % 8)


def _pixels_at(head: int, count: int) -> int:
    end = head + 8 * count
    return end + -end % _PAGE


def length_of(head: int, count: int, size: int) -> int:
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


def open_kept(place: Path, wanted: Callable[[dict[str, Any]], bool], tell: Callable[[str], None]) -> Kept | None:
    """What the file holds, or None if it is not ``wanted`` by what is told of it. Raises one of ``DAMAGE`` for damage.

    Told are the "key" (what ``key_of`` gives), and what it is "about".
    """
    mode: Literal["r+", "c"] = "r+"
    try:
        file: IO[bytes] = place.open("r+b", 0)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise
        file, mode = place.open("rb", 0), "c"
    with ExitStack() as opened:
        opened.enter_context(file)
        hold(file)
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
        if not wanted(told):
            return None
        start = _HEAD + length + -(_HEAD + length) % 8
        if whole != length_of(start, count, size):
            raise ValueError("it is cut short, or longer than it was")
        # shared: what another process adds shows here
        sums = np.memmap(file, np.int64, mode, start, (count,))
        pixels = np.memmap(file, np.uint8, mode, _pixels_at(start, count), (count, 3, size, size))
        kept = Kept(place, file, told["about"], sums, pixels, tell)
        opened.pop_all()
        return kept


def _digest(lengths: bytes, text: bytes) -> bytes:
    return blake2b(lengths + text, digest_size=_DIGEST).digest()


def hold(file: IO[bytes], *, alone: bool = False) -> bool:
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
