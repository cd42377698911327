"""Many files opened at once, to find out what they hold: what cannot be is named, and too many are refused."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import torch

from fastssl.data.decode import UnreadableError
from fastssl.data.files import ALLOW_MORE, TooManySkippedError, allowed
from fastssl.data.reading import Progress, quote
from fastssl.data.sources import Skipped

T = TypeVar("T")


def open_all(
    files: Sequence[tuple[str, Path]],
    opened: Callable[[str, Path], T],
    skipped: list[Skipped],
    progress: Progress | None = None,
) -> list[tuple[int, T]]:
    """Opens files on as many threads as torch uses.

    Args:
        files: the name of each, and its path.
        opened: what becomes of both; raises ``UnreadableError`` for one that cannot be used.
        skipped: is given those.
        progress: called with (files done, files in all) after each file.
    Returns:
        The positions of the others and what became of them, in order.
    """

    def attempt(file: tuple[str, Path]) -> T | UnreadableError:
        try:
            return opened(*file)
        except UnreadableError as error:
            return error

    found: list[tuple[int, T]] = []
    with ThreadPoolExecutor(torch.get_num_threads(), "open") as pool:
        for i, result in enumerate(pool.map(attempt, files)):
            if isinstance(result, UnreadableError):
                skipped.append(Skipped(files[i][0], str(result)))
            else:
                found.append((i, result))
            if progress is not None:
                progress(i + 1, len(files))
    return found


def refuse_too_many(skipped: Sequence[Skipped], count: int, max_skipped: float, what: str, advice: str) -> None:
    """Allows a share ``max_skipped`` of ``count`` files to be unusable, and always one.

    Args:
        what: they are called in the error, such as "unreadable videos".
        advice: what to do about them, besides allowing more.
    Raises:
        UserError: naming some, if there are more; if ``max_skipped`` is no share.
    """
    limit = allowed(count, max_skipped)
    if len(skipped) > limit:
        told = f"{len(skipped)} of {count}, {limit} allowed ({quote(skipped)})"
        raise TooManySkippedError(f"too many {what}: {told}: {advice}, {ALLOW_MORE.format(max_skipped)}")
