"""Files of two sets that may hold the same, told without reading them; and what tells it when they are read."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b, sha256

import numpy as np

from fastssl.data.sources import Entries

# Words of a digest of a file's bytes.
DIGEST = 2
# Ways for files to be alike, from the surest to the weakest: of one name, size and times; name and size; time of the
# last change and size (one was renamed); last part of the name and size (it was copied into another folder).
WAYS = 4
# The ways that are implied by the others: what shares a name and size shares its last part and size, too.
_WEAKEST = (2, 3)
# Places of the table that tells which files may be alike at all, for each file; the least and most, as powers of 2.
_PLACES, _FEWEST, _MOST = 16, 16, 25


def digest(data: bytes) -> np.ndarray:
    """(DIGEST,) int64 that tell the bytes of a file from all others."""
    return np.array(np.frombuffer(sha256(data).digest()[: 8 * DIGEST], np.int64))


def keys(entries: Entries) -> np.ndarray:
    """(N, WAYS) int64: a number of each file for each way, which those have in common that are alike.

    Where the source tells no times all files are of one.
    """
    times = [""] * len(entries) if entries.times is None else entries.times
    found = [_keys(*file) for file in zip(entries.names, entries.sizes, times, strict=True)]
    return np.frombuffer(b"".join(found), np.int64).reshape(-1, WAYS)


def _keys(name: str, size: int, times: str) -> bytes:
    changed, last = times.partition(" ")[0], name.rpartition("/")[2]
    ways = (f"{name}\0{times}", name, f"\0{changed}", f"\0\0{last}")
    return b"".join([blake2b(f"{size}\0{way}".encode(errors="surrogatepass"), digest_size=8).digest() for way in ways])


class Likely:
    """Matches the files of one set with those of many others, most of which have nothing in common with it.

    A file of another set is looked at closely only if it shares a key of the two weakest ways, without which it shares
    none of the surer ones. Of nearly all that do not, a table tells so, in a pass over the set.

    Args:
        new: (N, WAYS) int64, the ``keys`` of the one set.
    """

    def __init__(self, new: np.ndarray) -> None:
        bits = min(_MOST, max(_FEWEST, (_PLACES * len(new)).bit_length()))
        self._new, self._mask = new, (1 << bits) - 1
        self._seen = np.zeros(1 << bits, bool)
        for way in _WEAKEST:
            self._seen[new[:, way] & self._mask] = True
        self._keys = [np.sort(new[:, way]) for way in _WEAKEST]

    def match(self, old: np.ndarray) -> Match:
        """As the function ``match`` of both sets."""
        near = [self._seen[old[:, way] & self._mask] for way in _WEAKEST]
        some = np.flatnonzero(near[0] | near[1])
        shared = [_among(own, old[some, way]) for own, way in zip(self._keys, _WEAKEST, strict=True)]
        some = some[shared[0] | shared[1]]
        if not len(some):
            return Match(np.full(len(self._new), -1), np.zeros(len(self._new), bool))
        found = match(self._new, old[some])
        return Match(np.where(found.rows < 0, -1, some[found.rows]), found.same)


@dataclass(frozen=True)
class Match:
    """Files of an old set that may be those of a new one.

    Args:
        rows: (N,) int64, for each new file the place of the old one, -1 where none is like it.
        same: (N,) bool, whether that, and no other, has its name, size and times.
    """

    rows: np.ndarray
    same: np.ndarray


def match(new: np.ndarray, old: np.ndarray) -> Match:
    """The old file that is most like each new one, both by their ``keys``; one may be like several."""
    rows = np.full(len(new), -1)
    same = np.zeros(len(new), bool)
    for way in range(WAYS):
        free = np.flatnonzero(rows < 0)
        order = old[:, way].argsort()
        near = order[np.searchsorted(old[order, way], new[free, way]).clip(max=len(old) - 1)]
        rows[free] = np.where(old[near, way] == new[free, way], near, -1)
        if way == 0:
            same = (rows >= 0) & _single(new[:, way]) & _single(old[:, way])[rows]
    return Match(rows, same)


def _among(known: np.ndarray, values: np.ndarray) -> np.ndarray:
    """(n,) bool, which of ``values`` (n,) are among ``known`` (m,), which ascend."""
    return np.asarray(known[known.searchsorted(values).clip(max=len(known) - 1)] == values)


def _single(values: np.ndarray) -> np.ndarray:
    """(N,) bool, which of ``values`` (N,) there is one of."""
    _, which, counts = np.unique(values, return_inverse=True, return_counts=True)
    return np.asarray(counts[which] == 1)
