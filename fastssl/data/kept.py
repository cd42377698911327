"""A file of decoded images, which processes share: its layout, and what is held to its checksums.

One file holds a set of images of one size: a line of JSON that says what it is of, what its files are known by
(`fastssl.data.alike.keys`), a mark of each image, and the pixels from a whole page on. The file is made whole in its
length; images are written to it as they are decoded, by whichever process needs them first. So nothing is lost where a
process is killed, and what others have decoded is there at once.

A mark is a digest of the bytes that the image was decoded from, and a checksum of that and of the pixels. It is 0 as
long as the image is not there. An image that was carried over from another file, and may be that of this one's, has its
checksum in another place: when its file is first read, it is taken if the bytes have the digest, else decoded anew.

To start with a file, its head is read and nothing else. An image is held to its checksum when it is first used by a
process: what is damaged is decoded again, and said.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import struct
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
import torch
from torch import Tensor

from fastssl.data.alike import DIGEST, WAYS, Match, digest
from fastssl.data.decode import decode, decoder
from fastssl.data.rows import InMemory, checksums
from fastssl.data.sources import one_line
from fastssl.files import atomic_write

# Raise it when the layout of the file changes.
_FORMAT = 3
_MAGIC = b"fastssl images\r\n"
_PAGE = 4096
# After the magic: bytes of the JSON, images, side of an image; then a digest of these and the JSON.
_LENGTHS, _DIGEST = struct.Struct("<QQQ"), 16
_HEAD = len(_MAGIC) + _LENGTHS.size + _DIGEST
# A mark: the checksum of what is there, of what was carried over, and the digest of the file.
_SUM, _CARRIED, _CONTENT, _MARK = 0, 1, slice(2, 2 + DIGEST), 2 + DIGEST
# Images that are held to their checksums, or carried over, at a time: bounds the copy of them.
_BLOCK = 256

# Some images of a file, one after the other: the place of the first, their marks, their pixels.
Block = tuple[int, np.ndarray, np.ndarray]

# What reading a damaged file may raise.
DAMAGE = (ValueError, KeyError, TypeError, AttributeError, struct.error)


@dataclass(frozen=True)
class Layout:
    """Where things are in a file.

    Args:
        keys: where what files are known by begins, at a whole word; the marks follow.
        count: images.
        size: side of an image.
    """

    keys: int
    count: int
    size: int

    @property
    def marks(self) -> int:
        return self.keys + 8 * WAYS * self.count

    @property
    def pixels(self) -> int:
        end = self.marks + 8 * _MARK * self.count
        return end + -end % _PAGE

    @property
    def image(self) -> int:
        return 3 * self.size * self.size

    @property
    def length(self) -> int:
        return self.pixels + self.count * self.image


class Kept:
    """Images in a file of the cache; the contract is `fastssl.data.rows.InMemory`'s.

    Args:
        place: of the file.
        file: open for as long as this is, and locked against being dropped; images cannot be added to it if it is open
            for reading only.
        about: what was kept with them: plain values.
        keys: (N, WAYS) int64, what their files were known by when this was made.
        marks: (N, 4) int64, mapped.
        pixels: (N, 3, S, S) uint8, mapped: a page is read from the disk when it is first used.
        tell: is given a line on what is damaged, and if images can no longer be kept.
    """

    def __init__(
        self,
        place: Path,
        file: IO[bytes],
        about: dict[str, Any],
        keys: np.ndarray,
        marks: np.memmap[Any, np.dtype[np.int64]],
        pixels: np.memmap[Any, np.dtype[np.uint8]],
        tell: Callable[[str], None],
    ) -> None:
        self.place, self.about, self.keys = place, about, keys
        self._file, self._marks, self._tell = file, np.asarray(marks), tell
        self._marks_at, self._pixels_at = int(marks.offset), int(pixels.offset)
        self._mapped = torch.from_numpy(pixels)
        self._checked = np.zeros(len(marks), bool)
        self._writing = threading.Lock()
        self._memory: InMemory | None = None  # for what else is added, if the file can no longer be written to

    def __del__(self) -> None:
        self._file.close()

    def release(self) -> None:
        """Allows the file to be dropped. What is mapped of it stays."""
        with suppress(OSError):  # where files cannot be locked none is dropped
            fcntl.flock(self._file, fcntl.LOCK_UN)

    @property
    def shape(self) -> torch.Size:
        return self._mapped.shape

    @property
    def length(self) -> int:
        """Bytes of the file."""
        return os.fstat(self._file.fileno()).st_size

    @property
    def written(self) -> np.ndarray:
        """(N,) bool, which images are in the file, whole or damaged, be it that they were carried over."""
        return np.asarray((self._marks[:, _SUM] != 0) | (self._marks[:, _CARRIED] != 0))

    @property
    def ready(self) -> np.ndarray:
        """(N,) bool, which images are there, whole or damaged; those carried over are when their files are read."""
        in_file, memory = self._marks[:, _SUM] != 0, self._memory
        return np.asarray(in_file if memory is None else in_file | memory.ready)

    def contents(self, row: int) -> np.ndarray:
        """(DIGEST,) int64, that of the file that the image at ``row`` was decoded from; 0 if it was not."""
        return np.array(self._marks[row, _CONTENT])

    def there(self, rows: np.ndarray) -> np.ndarray:
        """(n,) bool, which of the images at ``rows`` are there and as they were written."""
        memory = self._memory
        in_memory = np.zeros(len(rows), bool) if memory is None else memory.there(rows)
        unsure = rows[~(self._checked[rows] | in_memory)]
        for start in range(0, len(unsure), _BLOCK):
            some = unsure[start : start + _BLOCK]
            marks = np.array(self._marks[some])  # before the pixels, which were written first
            some, marks = some[marks[:, _SUM] != 0], marks[marks[:, _SUM] != 0]
            right = _sums(self._mapped[torch.from_numpy(some)], marks[:, _CONTENT]) == marks[:, _SUM]
            self._checked[some[right]] = True
            if not right.all():
                self._tell(f"{self.place} is damaged ({(~right).sum()} images): decoding them anew")
        return np.asarray(self._checked[rows] | in_memory)

    def images(self, rows: Tensor) -> Tensor:
        """(n, 3, S, S) uint8, a new tensor of the images at ``rows`` (n,), which are there."""
        images = self._mapped.index_select(0, rows)
        memory = self._memory
        if memory is not None:
            added = torch.from_numpy(memory.there(rows.numpy()))
            images[added] = memory.images(rows[added])
        return images

    def add(self, row: int, data: bytes) -> None:
        """Adds the image of a file, given its bytes; from any thread. Where this cannot be written, memory takes over.

        It is decoded, unless it was carried over and is that of these bytes.

        Raises:
            UnreadableError: if they are of no image.
            UserError: if the memory does not hold all of them.
        """
        content = digest(data)
        planes = self._carried(row, content)
        if planes is None:
            planes = np.ascontiguousarray(decode(data, self._mapped.shape[-1]).transpose(2, 0, 1))
        self._put(row, planes, content)

    def _carried(self, row: int, content: np.ndarray) -> np.ndarray | None:
        """(3, S, S) uint8, what was carried over to ``row``, if it was decoded from a file of this content."""
        mark = np.array(self._marks[row])
        if (mark[_CONTENT] != content).any():
            return None
        planes = self._mapped[row].clone()
        return planes.numpy() if _sums(planes[None], content[None])[0] == mark[_CARRIED] else None

    def _put(self, row: int, planes: np.ndarray, content: np.ndarray) -> None:
        mark = self._marks_at + row * self._marks.strides[0]
        with self._writing:
            if self._memory is None:
                try:
                    self._write(planes, self._pixels_at + row * planes.nbytes)
                    self._write(content, mark + _CONTENT.start * content.itemsize)
                    self._write(_sums(torch.from_numpy(planes)[None], content[None]), mark)
                    self._checked[row] = True
                    return
                except OSError as error:
                    self._tell(f"no more images are kept for the next start: {one_line(error)}")
                    self._memory = InMemory(len(self._checked), self._mapped.shape[-1])
        assert self._memory is not None
        self._memory.put(row, planes)

    def copies(self, match: Match) -> Iterator[Block]:
        """Those of the images that match the ones of another file, as they are to be there; 0 where none matches."""
        for start in range(0, len(match.rows), _BLOCK):
            block = slice(start, start + _BLOCK)
            found = np.flatnonzero(match.rows[block] >= 0)
            if not len(found):
                continue
            rows = match.rows[block][found]
            marks = np.zeros((len(match.rows[block]), _MARK), np.int64)
            pixels = np.zeros((len(marks), *self._mapped.shape[1:]), np.uint8)
            marks[found] = _carried_over(self._marks[rows], match.same[block][found])  # before the pixels
            pixels[found] = self._mapped[torch.from_numpy(rows)].numpy()
            yield start, marks, pixels

    def _write(self, values: np.ndarray, at: int) -> None:
        if not self._file.writable():
            raise OSError(errno.EROFS, f"{self.place} may not be written to")
        data = values.data.cast("B")
        while data:
            done = os.pwrite(self._file.fileno(), data, at)
            data, at = data[done:], at + done


def _carried_over(marks: np.ndarray, same: np.ndarray) -> np.ndarray:
    """(n, 4) ``marks`` for another file, where ``same`` (n,) tells which are of the very files that are there."""
    there = same & (marks[:, _SUM] != 0)
    known = np.where(marks[:, _SUM] != 0, marks[:, _SUM], marks[:, _CARRIED])
    return np.column_stack([np.where(there, known, 0), np.where(there, 0, known), marks[:, _CONTENT]])


def _sums(images: Tensor, contents: np.ndarray) -> np.ndarray:
    """(n,) int64 of (n, 3, S, S) uint8 images and the digests (n, DIGEST) of their files.

    None of them is 0, which is kept for those that are not there.
    """
    sums = checksums(images).numpy() ^ np.bitwise_xor.reduce(contents, 1)
    return np.where(sums == 0, -1, sums)


@dataclass(frozen=True)
class NewFile:
    """A file that is to be made.

    Args:
        stamp: of the source.
        about: is kept with the images: plain values.
        keys: (N, WAYS) int64, what their files are known by.
        size: side of the images.
    """

    stamp: str
    about: dict[str, Any]
    keys: np.ndarray
    size: int

    @cached_property
    def _head(self) -> bytes:
        """What stands before the marks."""
        keys = self.keys.tobytes()
        told = {"decoder": _decoder(), "stamp": self.stamp, "keys": _digest(keys).hex(), "about": self.about}
        text = json.dumps(told).encode()
        text += b" " * (-(_HEAD + len(text)) % 8)
        lengths = _LENGTHS.pack(len(text), len(self.keys), self.size)
        return _MAGIC + lengths + _digest(lengths + text) + text + keys

    @property
    def layout(self) -> Layout:
        return Layout(len(self._head) - self.keys.nbytes, len(self.keys), self.size)

    def write(self, place: Path, carried: Iterable[Block]) -> None:
        """Makes it, in place of any other; with what is ``carried`` over, and else without images."""
        layout = self.layout
        with atomic_write(place) as partial, partial.open("wb") as file:
            _reserve(file, layout.length)
            file.write(self._head)
            for first, marks, pixels in carried:
                file.seek(layout.marks + first * 8 * _MARK)
                file.write(marks.data)
                file.seek(layout.pixels + first * layout.image)
                file.write(pixels.data)


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


def current(told: dict[str, Any]) -> bool:
    """Whether the images that this was told of were decoded as they would be now."""
    return bool(told.get("decoder") == _decoder())


def _decoder() -> str:
    return f"{_FORMAT}; {decoder()}"


def open_kept(place: Path, wanted: Callable[[dict[str, Any]], bool], tell: Callable[[str], None]) -> Kept | None:
    """What the file holds, or None if it is not ``wanted`` by what is told of it. Raises one of ``DAMAGE`` for damage.

    Told are the "stamp" of the source, and what is kept "about" the images, if it is ``current``.
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
        if not hold(file):
            raise FileNotFoundError(f"{place} was dropped by another process")
        told, layout = _read_head(file)
        if not wanted(told):
            return None
        if os.fstat(file.fileno()).st_size != layout.length:
            raise ValueError("it is cut short, or longer than it was")
        known = file.read(layout.marks - layout.keys)
        if _digest(known).hex() != told["keys"]:
            raise ValueError("its keys are not what was written")
        keys = np.frombuffer(known, np.int64).reshape(-1, WAYS)
        # shared: what another process adds shows here
        marks = np.memmap(file, np.int64, mode, layout.marks, (layout.count, _MARK))
        pixels = np.memmap(file, np.uint8, mode, layout.pixels, (layout.count, 3, layout.size, layout.size))
        kept = Kept(place, file, told["about"], keys, marks, pixels, tell)
        opened.pop_all()
        return kept


def _read_head(file: IO[bytes]) -> tuple[dict[str, Any], Layout]:
    """What the beginning of a file tells of its images, and of the rest of it."""
    head = file.read(_HEAD)
    if not head.startswith(_MAGIC):
        raise ValueError("it does not begin as it should")
    lengths, kept = head[len(_MAGIC) : -_DIGEST], head[-_DIGEST:]
    length, count, size = _LENGTHS.unpack(lengths)
    if length > os.fstat(file.fileno()).st_size:
        raise ValueError("it is cut short")
    text = file.read(length)
    if _digest(lengths + text) != kept:
        raise ValueError("its head is not what was written")
    told = json.loads(text)
    return told, Layout(_HEAD + length, count, size)


def _digest(data: bytes) -> bytes:
    return blake2b(data, digest_size=_DIGEST).digest()


def hold(file: IO[bytes], *, alone: bool = False) -> bool:
    """Marks an open file as in use; False if it is being dropped, or is not what is in its place any more.

    ``alone`` asks whether nobody else uses it: no where that cannot be told.
    """
    try:
        fcntl.flock(file, (fcntl.LOCK_EX if alone else fcntl.LOCK_SH) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        if alone:
            return False
    try:  # it may have been dropped since it was opened, or another put in its place
        return os.path.samestat(os.fstat(file.fileno()), Path(file.name).stat())
    except FileNotFoundError:
        return False
