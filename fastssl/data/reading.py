"""Many image files to one tensor: read in order, decoded in parallel, the unreadable ones counted and named."""

from __future__ import annotations

import math
import os
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from fastssl.data.decode import UnreadableError, decode
from fastssl.data.sources import Entry, Skipped
from fastssl.errors import UserError

Progress = Callable[[int, int], None]

# Groups of files read ahead of the decoding threads, for each of them: bounds the memory that undecoded files take.
_READ_AHEAD = 4
# Files of a group, at most, and bytes from which it is one: to hand small ones over singly takes longer than to decode.
_GROUP, _GROUP_BYTES = 32, 1 << 17


def decode_all(
    entries: Sequence[Entry], size: int, allowed: int, progress: Progress | None = None
) -> tuple[Tensor, list[int], list[Skipped]]:
    """Reads and decodes ``entries``, on as many threads as torch uses; the result does not depend on how many.

    Args:
        entries: what to read, in this order.
        size: side of the images.
        allowed: how many may be unreadable.
        progress: called with (files done, files in all) after each file.

    Returns:
        (N, 3, size, size) uint8 for those that could be read, their positions in ``entries``, and the others.

    Raises:
        UserError: as soon as more than ``allowed`` are unreadable, naming some; if the memory does not hold them all.
    """
    images = _room(len(entries), size)
    kept: list[int] = []
    skipped: list[Skipped] = []

    def finish(position: int, reason: str | None) -> None:
        if reason is None:
            kept.append(position)
        else:
            skipped.append(Skipped(entries[position].name, reason))
        if len(skipped) > allowed:
            raise UserError(
                f"too many unreadable files: {len(skipped)} of the first {position + 1} of {len(entries)}, "
                f"{allowed} allowed ({quote(skipped)}): remove or repair them"
            )
        if progress is not None:
            progress(position + 1, len(entries))

    threads = torch.get_num_threads()
    with warnings.catch_warnings(), ThreadPoolExecutor(threads, "decode") as pool:
        warnings.simplefilter("ignore")  # Pillow's, about files that are odd and yet can be read
        waiting: deque[tuple[int, Future[list[str | None]]]] = deque()

        def finish_first() -> None:
            start, outcome = waiting.popleft()
            for position, reason in enumerate(outcome.result(), start):
                finish(position, reason)

        for start, files in _groups(entries):
            waiting.append((start, pool.submit(_decode_into, images[start : start + len(files)].numpy(), files)))
            if len(waiting) > threads * _READ_AHEAD:
                finish_first()
        while waiting:
            finish_first()
    return images if not skipped else images[kept], kept, skipped


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


def _room(count: int, size: int) -> Tensor:
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


def _decode_into(targets: np.ndarray, files: Sequence[bytes | UnreadableError]) -> list[str | None]:
    """Decodes ``files`` into ``targets`` (n, 3, S, S); returns for each why not, if it could not be."""
    reasons: list[str | None] = []
    for target, data in zip(targets, files, strict=True):
        try:
            if isinstance(data, UnreadableError):
                raise data
            target[:] = decode(data, target.shape[-1]).transpose(2, 0, 1)
            reasons.append(None)
        except UnreadableError as error:
            reasons.append(str(error))
    return reasons
