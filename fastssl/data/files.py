"""Reading the files of a listing from any thread: those that cannot be read are named, counted and passed over."""

from __future__ import annotations

import copy
import sys
import threading
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from traceback import walk_stack
from typing import TypeVar

from fastssl.data.decode import UnreadableError
from fastssl.data.reading import quote
from fastssl.data.sources import Entries, Listing, Skipped
from fastssl.errors import UserError

T = TypeVar("T")

# The share of unreadable files above which a source is refused; a single one is always allowed.
MAX_SKIPPED = 0.1

# What becomes of an unreadable file's place in a batch.
ANOTHER = "another takes its place"
# And in a report.
NOT_SHOWN = "the report leaves it out"

# The way on, for errors of too many unreadable files; it is to be given the share that is allowed.
ALLOW_MORE = "or allow a larger share by --max_skipped (now {:g})"

_PACKAGE, _HERE = __name__.partition(".")[0], 2  # a stacklevel in it: commands tell its warnings without a line

_naming = threading.Lock()  # several readers may share the list of what was skipped


class TooManySkippedError(UserError):
    """More files cannot be read than are allowed."""


class Files:
    """The files of a listing and which of them cannot be read, found out as they are.

    Args:
        listing: what to read; what cannot be is added to its ``skipped``.
        max_skipped: the share of the files, in [0, 1], above which unreadable ones are an error; one is always allowed.
        instead: what becomes of the place of such a file, for the warning that names it, the first that does; None for
            no warning.

    Raises:
        UserError: if ``max_skipped`` is out of range.
    """

    def __init__(self, listing: Listing, max_skipped: float, instead: str | None) -> None:
        self.listing = listing
        self._instead = instead
        self._allowed, self._share = allowed(len(listing.entries), max_skipped), max_skipped
        self._all = len(listing.entries)
        self._unreadable: set[int] = set()  # by their positions in the whole
        self._names = _Names(listing.skipped)
        self._told: set[str] = set()  # of what becomes of their places; of all parts together
        self._positions: Sequence[int] | None = None  # in the whole, of a part

    def part(self, positions: Sequence[int], instead: str) -> Files:
        """Those at ``positions``. What cannot be read of a part is known, and counted, in the whole, and otherwise.

        Closing a part leaves the whole open.
        """
        part = copy.copy(self)
        part.listing = replace(
            self.listing, entries=Entries.of(self.listing.entries).subset(positions), close=lambda: None
        )
        part._positions = positions if self._positions is None else [self._positions[i] for i in positions]
        part._instead = instead
        return part

    def met(self, instead: str | None) -> Files:
        """The same files, where ``instead`` is what becomes of the place of one that is first met here."""
        files = copy.copy(self)
        files._instead = instead
        return files

    def guarded(self, look: Callable[[], None]) -> Files:
        """The same files, as `Entries.guarded` has them."""
        files = copy.copy(self)
        files.listing = replace(self.listing, entries=Entries.of(self.listing.entries).guarded(look))
        return files

    def is_lost(self, position: int) -> bool:
        """Whether a file is known to be unreadable."""
        return self._in_whole(position) in self._unreadable

    def _in_whole(self, position: int) -> int:
        return position if self._positions is None else self._positions[position]

    @property
    def skipped(self) -> tuple[Skipped, ...]:
        """The files met so far that cannot be read, and why."""
        return tuple(self.listing.skipped)

    def read(self, position: int, use: Callable[[bytes], T]) -> T | None:
        """What ``use`` makes of the bytes of a file; None if it cannot be read, or once could not be.

        Raises:
            UserError: if more files cannot be read than are allowed.
        """
        if self.is_lost(position):
            return None
        try:
            return use(self.listing.entries[position].read())
        except UnreadableError as error:
            self.give_up(position, str(error))
            return None

    def give_up(self, position: int, reason: str) -> None:
        """Names and counts a file that cannot be read. Raises as ``read`` does."""
        name = self.listing.entries[position].name
        with _naming:
            if self.is_lost(position):
                return
            self._unreadable.add(self._in_whole(position))
            count = len(self._unreadable)
            new = name not in self._names
            if new:
                self.listing.skipped.append(Skipped(name, reason))
            warning = self._warning(name, reason) if new else None
        if warning is not None:
            warnings.warn(warning, stacklevel=_of_the_call())
        if count > self._allowed:
            raise TooManySkippedError(
                f"too many unreadable files: {count} so far, {self._allowed} of {self._all} allowed "
                f"({quote(self.skipped)}): repair them, {ALLOW_MORE.format(self._share)}"
            )

    def _warning(self, name: str, reason: str) -> str | None:
        """What is said of such a file, if anything; what becomes of its place is said of the first alone."""
        if self._instead is None:
            return None
        first = self._instead not in self._told
        self._told.add(self._instead)
        return f"{name!r} cannot be read ({reason}){f': {self._instead}' if first else ''}"

    def substitutes(self, found: Sequence[object | None]) -> list[int]:
        """For each file of a batch its place in it, or that of the next readable one where it is None.

        Raises:
            UserError: if none of them can be read.
        """
        readable = [i for i, image in enumerate(found) if image is not None]
        if not readable:
            raise UserError(f"none of the {len(found)} files of a batch can be read ({quote(self.skipped)})")
        return [next((j for j in readable if j >= i), readable[0]) for i in range(len(found))]

    def filled(self, found: Sequence[T | None]) -> list[T]:
        """A batch with each None replaced by its substitute. Raises as ``substitutes`` does."""
        return [use for use in (found[i] for i in self.substitutes(found)) if use is not None]


def _of_the_call() -> int:
    """The ``stacklevel``, for who asks, of the call into this package, where a program of the user's made it."""
    callers = [str(frame.f_globals.get("__name__")) for frame, _ in walk_stack(sys._getframe(1))]
    ours = [level for level, name in enumerate(callers, 1) if name.partition(".")[0] == _PACKAGE]
    outermost = callers[ours[-1] :][:1]
    if not outermost or outermost[0].partition(".")[0] in ("concurrent", "threading"):  # a thread of our own
        return _HERE
    return _HERE if callers[ours[-1] - 1].startswith(f"{_PACKAGE}.cli") else ours[-1] + 1


class _Names:
    """The names of what was skipped, in a list that only grows, by several readers."""

    def __init__(self, skipped: Sequence[Skipped]) -> None:
        self._skipped, self._known, self._seen = skipped, set[str](), 0

    def __contains__(self, name: str) -> bool:
        new = self._skipped[self._seen :]
        self._seen += len(new)
        self._known.update(item.name for item in new)
        return name in self._known


def allowed(count: int, max_skipped: float) -> int:
    """How many of ``count`` files may be unreadable: a share of them, and always one.

    Raises:
        UserError: if ``max_skipped`` is no share.
    """
    if not 0 <= max_skipped <= 1:
        raise UserError(f"max_skipped is a share of the files, from 0 to 1; got {max_skipped}")
    return max(1, int(max_skipped * count))
