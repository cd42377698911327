"""Decoded images kept on disk, so that each is decoded once, and processes share its pages.

A folder of files as `fastssl.data.kept` describes them, each put in its place when a set is first read. A file that
was cut short, whose head is damaged, or that is of images as they were once (`fastssl.data.sources.stamp` says what of
a source is looked at), is made anew.
"""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

from filelock import FileLock

from fastssl.data.alike import keys
from fastssl.data.carry import best_of
from fastssl.data.kept import DAMAGE, Block, Kept, NewFile, current, hold, open_kept
from fastssl.data.reading import Progress, counted
from fastssl.data.sources import Entries, one_line
from fastssl.errors import UserError

_SUFFIX = ".images"

_HOW_TO_REMOVE = "remove it whenever you like; --no_cache does without"


@dataclass(frozen=True)
class Cache:
    """A folder of decoded images. Whatever is in it may be removed at any time.

    Args:
        folder: made when it is needed.
        tell: is given a line on each thing that was found, kept or dropped, or could not be, and why.
        limit: the most bytes that its files may take; None for no limit. Where they take more, or would with one to be
            made, those that were not used for longest are dropped, but none that a process is using; if there is still
            no room, it is not made, and if there could be none, nothing is dropped for it.
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
            found = place.stat().st_ino
            kept = open_kept(
                place, lambda told: current(told) and told["stamp"] == stamp and fits(told["about"]), self.tell
            )
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            self.tell(f"{place} cannot be read ({one_line(error)}): reading the images anew")
            return None
        except DAMAGE as error:
            self.tell(f"{place} is damaged ({error}): reading the images anew")
            with suppress(OSError):
                if place.stat().st_ino == found:  # and not what another process has put there since
                    place.unlink()
            return None
        if kept is not None:
            with suppress(OSError):  # for what is dropped first where room is needed
                os.utime(place)
            self.tell(f"{_amount(kept, kept.written.sum())}, from {place} ({_HOW_TO_REMOVE})")
            excess = self._drop_others(place, kept.length)
            if excess > 0:
                self.tell(f"the cache takes {_in_words(excess)} more than --cache_limit: what is in use is not dropped")
        return kept

    def create(
        self,
        place: Path,
        stamp: str,
        about: dict[str, Any],
        entries: Entries,
        size: int,
        progress: Progress | None = None,
    ) -> Kept | None:
        """Room for the images of ``entries`` at ``size`` pixels.

        Those that are kept of the source as it was, and of another that has most of these files, are carried over. A
        file that has its name, size and times of before is not read for that; others are when they are first needed.
        ``progress`` is called with (images done, images in all) while they are copied.

        Returns:
            None if that is not possible, which ``tell`` is told.
        """
        new = NewFile(stamp, about, keys(entries), size)
        try:
            carried = best_of(self._others(place, size), place, new, entries)
            if carried is not None:  # it may go, if it has to: what is mapped of it stays
                carried.donor.release()
            self._make_room(place, new.layout.length)
            if carried is not None and not _is_written(new, place, carried.blocks(progress)):
                carried = None  # what was dropped takes its room for as long as it is mapped
            if carried is None:
                new.write(place, ())
            kept = open_kept(place, current, self.tell)
        except (UserError, OSError, ValueError) as error:
            self.tell(f"the images are not kept for the next start: {error}")
            return None
        if kept is not None:
            before = "" if carried is None else f"; {carried.count:,} are carried over from {carried.donor.place}"
            when = f"for the next start, as they are decoded{before}"
            self.tell(f"keeping {_amount(kept, len(kept.keys))}, in {place} {when} ({_HOW_TO_REMOVE})")
        return kept

    def _others(self, place: Path, size: int) -> list[Path]:
        """The files with images of ``size`` pixels, the one in ``place`` before all others."""
        return sorted(self.folder.glob(f"*-{size}px-*{_SUFFIX}"), key=lambda path: (path != place, path))

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
        limit = "no limit" if self.limit is None else f"at most {_in_words(self.limit)}"
        return f"{self.folder}: {counted(len(sizes), 'set')} of images, {_in_words(sum(sizes))}; {limit}"

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
        beyond = 0 if self.limit is None else needed - self.limit
        excess = self._drop_others(place, needed) if beyond <= 0 else beyond  # to drop others would not help
        if excess > 0:
            raise UserError(
                f"they would take {_in_words(needed)}, and --cache_limit leaves {_in_words(max(0, needed - excess))}: "
                "give a larger one"
            )

    def _drop_others(self, place: Path, needed: int) -> int:
        """Drops files until these and ``needed`` bytes in ``place`` are within the limit.

        Returns:
            By how many bytes they are still beyond it, above 0.
        """
        if self.limit is None:
            return 0
        others = [file for file in self._files() if file[2] != place]
        excess = sum(size for size, _, _ in others) + needed - self.limit
        for size, _, path in others:
            if excess <= 0:
                break
            if _drop(path):
                excess -= size
                self.tell(f"dropped {path}, {_in_words(size)}, which was not used for longest, for want of room")
        return max(0, excess)


def _is_written(new: NewFile, place: Path, carried: Iterable[Block]) -> bool:
    try:
        new.write(place, carried)
    except (UserError, OSError):
        return False
    return True


def _amount(kept: Kept, there: int) -> str:
    count, size = len(kept.keys), kept.shape[-1]
    many = "" if there in (0, count) else f"{there:,} of "
    return f"{many}{counted(count, 'image')} of {size} x {size}, {_in_words(kept.shape.numel())}"


def _in_words(size: int) -> str:
    """So many bytes, in GB, or in MB or kB where they are few."""
    unit, of = next((pair for pair in (("GB", 1e9), ("MB", 1e6)) if size >= pair[1]), ("kB", 1e3))
    return f"{size / of:,.1f} {unit}"


def _drop(path: Path) -> bool:
    """Removes a file of the cache; False if a process is using it, or it cannot be removed."""
    try:
        with path.open("r+b") as file:  # network drives lock no file for one that only reads it
            if not hold(file, alone=True):
                return False
            path.unlink()
    except OSError:
        return False
    return True
