"""Writing files so that a reader sees the old one or the whole new one, never a half."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from fastssl.errors import UserError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Yields a path beside ``path`` to write to; on success it replaces ``path``, on any error it is removed.

    Raises:
        UserError: naming ``path``, if the file system refuses (disk full, no permission).
    """
    target = Path(path)
    partial = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        with partial.open("rb") as written:
            os.fsync(written.fileno())
        partial.replace(target)
    except OSError as error:
        raise cannot_write(target, error) from error
    finally:
        with suppress(OSError):
            partial.unlink()


def cannot_write(path: Path, error: OSError) -> UserError:
    """The error for a path that the file system refuses, with what to do about it."""
    advice = "free some space" if error.errno in _FULL else "choose another place"
    if error.errno == errno.EISDIR:
        advice = "give the name of a file in it"
    return UserError(f"cannot write {path}: {error.strerror or error}; {advice}")
