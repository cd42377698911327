"""Images that are not in memory until they are asked for, in place of the tensor that they stand for."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import cache
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from fastssl.data.decode import decode
from fastssl.data.files import Files
from fastssl.data.reading import Progress, Use, read_each, room
from fastssl.data.sources import Entries

_WHITE = 255
# Bytes whose sums are taken at a time: bounds the copy of those that are not words of 64 bits.
_BLOCK = 1 << 24
_WORDS = (torch.int64, torch.int32, torch.uint8)


class Rows(ABC):
    """(N, 3, S, S) uint8 images of which those that are asked for are brought into memory, as new tensors.

    ``images[7]``, ``images[3:5]`` and ``images[torch.tensor([3, 1])]`` are what they are of a tensor.

    Args:
        rows: (N,) int64, which of all images they are.
        size: side of an image.
    """

    def __init__(self, rows: Tensor, size: int) -> None:
        self.rows = rows
        self._size = size

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def shape(self) -> torch.Size:
        return torch.Size((len(self.rows), 3, self._size, self._size))

    def __getitem__(self, index: int | slice | Tensor) -> Tensor:
        """(n, 3, S, S) uint8; of an integer (3, S, S)."""
        rows = self.rows[index]
        return self._bring(rows) if rows.ndim else self._bring(rows[None])[0]

    def subset(self, index: Tensor) -> Rows:
        """The images at the positions ``index`` (int64), in its order; nothing is copied."""
        part = copy.copy(self)
        part.rows = self.rows[index]
        return part

    @abstractmethod
    def identity(self) -> bytes:
        """What is the same as long as the images are, and hardly ever else; without bringing them into memory."""

    @abstractmethod
    def _bring(self, rows: Tensor) -> Tensor: ...


class Store(Protocol):
    """Where decoded images are kept: in memory, or in a file of the cache."""

    @property
    def shape(self) -> torch.Size:
        """(M, 3, S, S), of all images, there or not."""

    @property
    def ready(self) -> np.ndarray:
        """(M,) bool, which images are there, whoever read them; damage is not looked for."""

    def there(self, rows: np.ndarray) -> np.ndarray:
        """(n,) bool, which of the images at ``rows`` are there."""

    def images(self, rows: Tensor) -> Tensor:
        """(n, 3, S, S) uint8, a new tensor of the images at ``rows`` (n,), whatever it may hold for those not there."""

    def add(self, row: int, data: bytes) -> None:
        """Adds the image of a file, given its bytes; from any thread.

        Raises:
            UnreadableError: if they are of no image.
        """


class InMemory:
    """Decoded images in memory; the contract is `Store`'s.

    Args:
        count: how many there will be.
        size: side of an image.

    Raises:
        UserError: if the memory does not hold them all.
    """

    def __init__(self, count: int, size: int) -> None:
        self.pixels = room(count, size)
        self._there = np.zeros(count, bool)

    @property
    def shape(self) -> torch.Size:
        return self.pixels.shape

    @property
    def ready(self) -> np.ndarray:
        return self._there

    def there(self, rows: np.ndarray) -> np.ndarray:
        return np.array(self._there[rows])

    def images(self, rows: Tensor) -> Tensor:
        return self.pixels.index_select(0, rows)

    def add(self, row: int, data: bytes) -> None:
        self.put(row, decode(data, self.pixels.shape[-1]).transpose(2, 0, 1))

    def put(self, row: int, planes: np.ndarray) -> None:
        """Adds an image, (3, S, S) uint8; from any thread."""
        self.pixels.numpy()[row] = planes
        self._there[row] = True


class FileRows(Rows):
    """Image files, of which some may turn out to be unreadable. Those are white where they are asked for.

    Args:
        files: of all images.
        rows: which of them they are.
        size: side of the images.
    """

    def __init__(self, files: Files, rows: Tensor, size: int) -> None:
        super().__init__(rows, size)
        self.files = files

    def identity(self) -> bytes:
        entries = Entries.of(self.files.listing.entries)
        return "\n".join([f"{entries.names[i]}\0{entries.sizes[i]}" for i in self.rows.tolist()]).encode()

    def guarded(self, look: Callable[[], None]) -> FileRows:
        """The same images; ``look`` is called before each file is read, and what it raises ends the reading."""
        rows = copy.copy(self)
        rows.files = self.files.guarded(look)
        return rows

    def readable(self, progress: Progress | None = None) -> Tensor:
        """The positions of the images whose files can be read, which those are tried for that were not yet.

        Args:
            progress: called with (files done, files in all) after each file that is tried.
        Raises:
            UserError: if more files cannot be read than are allowed.
        """
        self._try(self.rows, progress)
        return torch.tensor([i for i, row in enumerate(self.rows.tolist()) if not self.files.is_lost(row)]).long()

    @abstractmethod
    def _try(self, rows: Tensor, progress: Progress | None = None) -> None:
        """Finds out which of the files of ``rows`` cannot be read."""

    def _each(self, rows: Sequence[int], use: Use, progress: Progress | None) -> None:
        """Reads the files of ``rows``; ``use`` is given each row and the bytes of its file."""
        entries = [self.files.listing.entries[row] for row in rows]
        for place, reason in read_each(entries, lambda place, data: use(rows[place], data)):
            if reason is not None:
                self.files.give_up(rows[place], reason)
            if progress is not None:
                progress(place + 1, len(rows))


class Decoded(FileRows):
    """Image files, each decoded when it is first asked for, as ``decode.decode`` does, and then kept.

    Args:
        files: of all images.
        store: where they are kept.
        rows: which of them they are.
        order: for each of all images its place among them as they are read best, where that is not their own order.
    """

    def __init__(self, files: Files, store: Store, rows: Tensor, order: Sequence[int] | None = None) -> None:
        super().__init__(files, rows, store.shape[-1])
        self.store = store
        self._tried = np.zeros(store.shape[0], bool)  # of all images, whichever part asked: kept now, or unreadable
        self._order = None if order is None else np.array(order)

    def usable(self, index: Tensor) -> Tensor:
        """The positions ``index`` of a batch, each that cannot be read replaced by the next of the batch that can be.

        Their images are decoded then; from any thread.

        Raises:
            UserError: if none can be, or more cannot be than are allowed.
        """
        rows = self.rows[index]
        self._try(rows)
        readable = [None if self.files.is_lost(row) else row for row in rows.tolist()]
        return index[torch.tensor(self.files.substitutes(readable))] if None in readable else index

    def read(self) -> int:
        """How many of these images are kept by now, whether anybody asked for them here, or known to be unreadable."""
        return int((self._tried | self.store.ready)[self.rows.numpy()].sum())

    def _try(self, rows: Tensor, progress: Progress | None = None) -> None:
        wanted = np.unique(rows.numpy())
        there = self.store.there(wanted)
        self._tried[wanted[there]] = True
        missing = wanted[~there]
        if self._order is not None:
            missing = missing[self._order[missing].argsort()]
        still = [row for row in missing.tolist() if not self.files.is_lost(row)]
        if still:
            self._each(still, self._keep, progress)
        self._tried[missing] = True

    def _keep(self, row: int, data: bytes) -> None:
        self.store.add(row, data)
        self._tried[row] = True

    def _bring(self, rows: Tensor) -> Tensor:
        self._try(rows)
        images = self.store.images(rows)
        lost = torch.tensor([self.files.is_lost(row) for row in rows.tolist()], dtype=torch.bool)
        images[lost] = _WHITE
        return images


class Undecoded(FileRows):
    """Image files, decoded each time that they are asked for, as ``decode.decode`` does."""

    def __init__(self, files: Files, rows: Tensor, size: int) -> None:
        super().__init__(files, rows, size)
        self._tried: set[int] = set()

    def _try(self, rows: Tensor, progress: Progress | None = None) -> None:
        new = [row for row in rows.tolist() if row not in self._tried and not self.files.is_lost(row)]
        if new:
            self._each(new, lambda row, data: decode(data, self._size), progress)
            self._tried |= set(new)

    def _bring(self, rows: Tensor) -> Tensor:
        images = torch.full((len(rows), 3, self._size, self._size), _WHITE, dtype=torch.uint8)
        pixels = images.numpy()
        wanted, which, counts = np.unique(rows.numpy(), return_inverse=True, return_counts=True)
        places = dict(zip(wanted.tolist(), np.split(which.argsort(), counts.cumsum()), strict=False))

        def keep(row: int, data: bytes) -> None:
            pixels[places[row]] = decode(data, self._size).transpose(2, 0, 1)

        self._each([row for row in places if not self.files.is_lost(row)], keep, None)
        return images


class Identified(Protocol):
    """What is told from others by an identity of its own: images that are not in memory, clips, recordings."""

    def __len__(self) -> int: ...

    def identity(self) -> bytes: ...


def identity(data: Tensor | Identified) -> bytes:
    """What is the same as long as the data are, and hardly ever else; of a tensor, those of images."""
    return checksums(data).numpy().tobytes() if isinstance(data, Tensor) else data.identity()


def checksums(images: Tensor) -> Tensor:
    """(N,) int64, a number of each of (N, 3, S, S) uint8 images that tells it from others, at the speed of memory.

    The sum of its words, each times an odd number of its place's own, modulo 2^64: a change of any one word changes it.
    """
    rows = images.contiguous().flatten(1)
    words = rows.view(next(dtype for dtype in _WORDS if rows.shape[1] % dtype.itemsize == 0))
    factors = _factors(words.shape[1])
    sums = torch.empty(len(words), dtype=torch.int64)
    step = max(1, _BLOCK // rows.shape[1])
    for start in range(0, len(words), step):
        torch.mv(words[start : start + step].long(), factors, out=sums[start : start + step])
    return sums


@cache
def _factors(count: int) -> Tensor:
    return torch.from_numpy(np.random.PCG64(0).random_raw(count).view(np.int64) | 1)
