"""What tests of the cache look at: what it says and holds, and what is read and decoded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from image_files import encode, noise

from fastssl.data import decode, rows
from fastssl.data.images import Cache, ImageSet, Splits
from fastssl.data.sources import Entry

PETS = {f"{kind}/{i}.png": encode(noise(seed=i)) for kind in ("cat", "dog") for i in range(6)}


class Told(list[str]):
    """What a cache said; ``told("kept")`` counts the lines with that word and forgets all."""

    def __call__(self, word: str) -> int:
        found = sum(word in line for line in self)
        self.clear()
        return found


def files(cache: Cache) -> list[Path]:
    return sorted(path for path in cache.folder.iterdir() if not path.name.endswith(".lock"))


def assert_same(a: ImageSet | None, b: ImageSet | None) -> None:
    assert (a is None) == (b is None)
    if a is None or b is None:
        return
    assert torch.equal(a.images[:], b.images[:])
    assert (a.labels is None) == (b.labels is None)
    assert a.labels is None or torch.equal(a.labels, b.labels)
    assert (a.classes, a.names, a.source) == (b.classes, b.names, b.source)
    assert tuple(a.skipped) == tuple(b.skipped)


def assert_same_splits(a: Splits, b: Splits) -> None:
    assert_same(a.train, b.train)
    assert_same(a.test, b.test)


class Work:
    """The names of the files that are read from now on, but for a sample, and how many are decoded."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.read: list[str] = []
        self.decoded = 0
        self._read_each, self._opened = rows.read_each, decode.opened
        monkeypatch.setattr(rows, "read_each", self._reading)
        monkeypatch.setattr(decode, "opened", self._opening)

    def _reading(self, entries: Sequence[Entry], *args: Any) -> Iterator[tuple[int, str | None]]:
        self.read.extend(entry.name for entry in entries)
        return self._read_each(entries, *args)

    def _opening(self, data: bytes) -> Any:
        self.decoded += 1
        return self._opened(data)

    def spent(self) -> tuple[int, int]:
        """How many files were read and how many decoded since this was last asked."""
        spent = len(self.read), self.decoded
        self.read, self.decoded = [], 0
        return spent
