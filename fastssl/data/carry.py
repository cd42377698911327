"""What of other files of the cache serves a new one, so that a set that changed or was copied is not decoded anew.

An image is carried over for sure if the set was in this place, and the image's file has the name, size and times of
before. Else it is held to the digest of its file when that is first read.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from fastssl.data.alike import Likely, Match, digest
from fastssl.data.decode import UnreadableError
from fastssl.data.kept import DAMAGE, Block, Kept, NewFile, current, open_kept
from fastssl.data.reading import Progress
from fastssl.data.sources import Entries

# Files that are read to find out whether times tell of changes.
_SAMPLES = 64


@dataclass(frozen=True)
class Carried:
    """Images of the file ``donor`` that may be those of another: for each of its files which they are."""

    donor: Kept
    match: Match

    def blocks(self, progress: Progress | None) -> Iterator[Block]:
        """Them, to be written; ``progress`` is called with (images done, images in all) after some of them are."""
        for first, marks, pixels in self.donor.copies(self.match):
            yield first, marks, pixels
            if progress is not None:
                progress(first + len(marks), len(self.match.rows))

    @cached_property
    def _there(self) -> np.ndarray:
        return np.asarray((self.match.rows >= 0) & self.donor.written[self.match.rows])

    @property
    def count(self) -> int:
        """How many there are."""
        return int(self._there.sum())

    @property
    def worth(self) -> int:
        """More for those whose files need not be read."""
        return self.count + int((self._there & self.match.same).sum())

    def doubted(self) -> Carried:
        """Whatever the times of the files are, they have to be read."""
        return replace(self, match=replace(self.match, same=np.zeros_like(self.match.same)))

    def holds(self, entries: Entries) -> bool:
        """Whether files of ``entries`` with the times of before hold what they held; some of them are looked at.

        Where the system keeps no time that programs cannot set back, they may not. Of a source that tells no times,
        False.
        """
        rows = np.flatnonzero(self.match.same & self._there)
        some = rows[:: max(1, len(rows) // _SAMPLES)][:_SAMPLES]
        return entries.times is not None and all(
            _is_of(entries, row, self.donor.contents(self.match.rows[row])) for row in some.tolist()
        )


def _is_of(entries: Entries, row: int, content: np.ndarray) -> bool:
    try:
        return bool((digest(entries[row].read()) == content).all())
    except UnreadableError:
        return False


def best_of(places: Iterable[Path], place: Path, new: NewFile, entries: Entries) -> Carried | None:
    """What is worth most for ``new``, which is to be of ``entries`` and in ``place``, of the files in ``places``.

    The first of those that are worth the same, ``place`` itself before all; None if nothing serves.
    """
    best, likely = None, Likely(new.keys)
    for path in places:
        if best is not None and best.worth >= len(new.keys):  # the place of the set itself comes first
            break
        with suppress(OSError, *DAMAGE):  # which is told when that file is used itself
            donor = open_kept(path, current, lambda _: None)
            if donor is None or donor.shape[-1] != new.size:
                continue
            found = Carried(donor, likely.match(donor.keys))
            if path != place or not found.holds(entries):
                found = found.doubted()
            if found.worth > (0 if best is None else best.worth):
                best = found
    return best
