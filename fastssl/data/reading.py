"""Many image files to one tensor: read in order, decoded in parallel, the unreadable ones counted and named."""

from __future__ import annotations

import math
import os
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

import torch
from torch import Tensor

from fastssl.data.decode import SUFFIXES, UnreadableError, decode
from fastssl.data.sources import Entry, Skipped
from fastssl.errors import UserError

Progress = Callable[[int, int], None]
# Of the bytes of the file at a position, on any thread: raises `UnreadableError` if they are of no use.
Use = Callable[[int, bytes], object]

# Groups of files read ahead of the decoding threads, for each of them: bounds the memory that undecoded files take.
_READ_AHEAD = 4
# Files of a group, at most, and bytes from which it is one: to hand small ones over singly takes longer than to decode.
_GROUP, _GROUP_BYTES = 32, 1 << 17


def decode_all(
    entries: Sequence[Entry], size: int, progress: Progress | None = None
) -> tuple[Tensor, list[int], list[Skipped]]:
    """Reads and decodes ``entries``, on as many threads as torch uses; the result does not depend on how many.

    Args:
        entries: what to read, in this order.
        size: side of the images.
        progress: called with (files done, files in all) after each file.

    Returns:
        (N, 3, size, size) uint8 for those that could be read, their positions in ``entries``, and the others.

    Raises:
        UserError: if the memory does not hold them all.
    """
    images = room(len(entries), size)
    pixels = images.numpy()
    kept: list[int] = []
    skipped: list[Skipped] = []

    def keep(position: int, data: bytes) -> None:
        pixels[position] = decode(data, size).transpose(2, 0, 1)

    with quiet():
        for position, reason in read_each(entries, keep):
            if reason is None:
                kept.append(position)
            else:
                skipped.append(Skipped(entries[position].name, reason))
            if progress is not None:
                progress(position + 1, len(entries))
    return images if not skipped else images[kept], kept, skipped


def read_each(entries: Sequence[Entry], use: Use) -> Iterator[tuple[int, str | None]]:
    """Reads ``entries`` one after the other, and uses them on as many threads as torch uses.

    Args:
        entries: what to read, in this order.
        use: is given the position of each that could be read, and its bytes, on one of the threads.

    Yields:
        The position of each, in order and after it was used, with None, or why it, or its image, could not be read.
    """
    threads = torch.get_num_threads()
    waiting: deque[tuple[int, Future[list[str | None]]]] = deque()
    pool = ThreadPoolExecutor(threads, "decode")
    try:
        for start, files in _groups(entries):
            waiting.append((start, pool.submit(_use_group, start, files, use)))
            if len(waiting) > threads * _READ_AHEAD:
                yield from _finished(*waiting.popleft())
        while waiting:
            yield from _finished(*waiting.popleft())
    finally:
        pool.shutdown(cancel_futures=True)


def _finished(start: int, outcome: Future[list[str | None]]) -> Iterator[tuple[int, str | None]]:
    return enumerate(outcome.result(), start)


def _groups(entries: Sequence[Entry]) -> Iterator[tuple[int, list[bytes | UnreadableError]]]:
    """Files, or why they cannot be read, and the position of the first: one after the other, as a tar has to be."""
    group: list[bytes | UnreadableError] = []
    held = 0
    for position, entry in enumerate(entries):
        try:
            data = entry.read()
            held += len(data)
            group.append(data)
        except UnreadableError as error:
            group.append(error)
        if len(group) == _GROUP or held >= _GROUP_BYTES or position == len(entries) - 1:
            yield position + 1 - len(group), group
            group, held = [], 0


@contextmanager
def quiet() -> Iterator[None]:
    """Without Pillow's warnings about files that are odd and yet can be read; for the main thread alone."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\b")
        yield


def room(count: int, size: int) -> Tensor:
    """(count, 3, size, size) uint8. The system would grant more than it has and end the process when it is filled."""
    needed = count * 3 * size * size
    if needed > _memory():
        raise UserError(
            f"{count} images of {size} x {size} pixels need {needed / 2**30:.1f} GiB of memory, this machine has "
            f"{_memory() / 2**30:.1f}: give a smaller --image_size or fewer images"
        )
    return torch.empty(count, 3, size, size, dtype=torch.uint8)


def _memory() -> float:
    """Bytes of this machine, where the system tells."""
    if not hasattr(os, "sysconf"):
        return math.inf
    return float(os.sysconf("SC_PHYS_PAGES")) * os.sysconf("SC_PAGE_SIZE")


def quote(skipped: Sequence[Skipped], most: int = 3) -> str:
    """The first few of ``skipped`` with their reasons, fit for one line."""
    shown = "; ".join(f"{item.name!r}: {item.reason}" for item in skipped[:most])
    return shown if len(skipped) <= most else f"{shown}; ..."


def no_image(source: str, skipped: Sequence[Skipped]) -> UserError:
    """The error for a source without an image file; ``skipped`` is what cannot even be opened."""
    reasons = quote(skipped) or f"no file ends in {', '.join(sorted(SUFFIXES))}"
    return UserError(f"no image in {source!r} ({reasons}): give a folder, zip or tar of images")


def counted(count: int, what: str, names: Sequence[str] = (), most: int = 5) -> str:
    """``3 classes (cat, dog, owl)``: how many of ``what``, which is singular, and the first few names of them."""
    plural = "" if count == 1 else "es" if what.endswith("s") else "s"
    shown = ", ".join(names[:most]) + (", ..." if len(names) > most else "")
    return f"{count:,} {what}{plural}" + (f" ({shown})" if shown else "")


def _use_group(start: int, files: Sequence[bytes | UnreadableError], use: Use) -> list[str | None]:
    """Uses ``files``, the first of which is at ``start``; returns for each why not, if it could not be."""
    reasons: list[str | None] = []
    for position, data in enumerate(files, start):
        try:
            if isinstance(data, UnreadableError):
                raise data
            use(position, data)
            reasons.append(None)
        except UnreadableError as error:
            reasons.append(str(error))
    return reasons
