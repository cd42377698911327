"""Images that are not in memory until they are asked for, in place of the tensor that they stand for."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from fastssl.data.decode import decode
from fastssl.data.files import Files
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


class Mapped(Rows):
    """Images in a file that is mapped into memory, whose pages all processes share.

    Args:
        pixels: (M, 3, S, S) uint8, the whole file's.
        sums: ``checksums(pixels)``.
        rows: which of them they are.
    """

    def __init__(self, pixels: Tensor, sums: Tensor, rows: Tensor) -> None:
        super().__init__(rows, pixels.shape[-1])
        self._pixels, self._sums = pixels, sums

    def identity(self) -> bytes:
        return self._sums[self.rows].numpy().tobytes()

    def _bring(self, rows: Tensor) -> Tensor:
        return self._pixels.index_select(0, rows)


class Undecoded(Rows):
    """Image files, decoded each time that they are asked for, as ``decode.decode`` does. One that cannot be is white.

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

    def _bring(self, rows: Tensor) -> Tensor:
        images = torch.full((len(rows), 3, self._size, self._size), _WHITE, dtype=torch.uint8)

        def bring(row: int, target: Tensor) -> None:
            pixels = self.files.read(row, partial(decode, size=self._size))
            if pixels is not None:
                target.copy_(torch.tensor(pixels).permute(2, 0, 1))

        with ThreadPoolExecutor(torch.get_num_threads(), "decode") as pool:
            list(pool.map(bring, rows.tolist(), images))
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
