"""Where image files come from: a folder, a zip or a tar. Nothing is ever extracted to disk."""

from __future__ import annotations

import io
import lzma
import os
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO

from fastssl.data.decode import SUFFIXES, UnreadableError
from fastssl.errors import UserError

# A single file above this is refused: no photograph is that large, and a crafted archive entry can be.
MAX_FILE_BYTES = 256 << 20

_DAMAGED = (OSError, EOFError, zlib.error, lzma.LZMAError, tarfile.TarError, zipfile.BadZipFile)


@dataclass(frozen=True)
class Skipped:
    """A file that could not be used, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class Entry:
    """A file that should hold an image: its path inside the source, with ``/``, and how to get its bytes.

    ``read`` raises ``UnreadableError`` if they cannot be had, and must not be called from two threads at once.
    """

    name: str
    read: Callable[[], bytes]


@dataclass
class Listing:
    """The image files of a source, in the order in which reading them is cheapest, and what cannot even be opened.

    Close it when all is read. ``forwards_only`` says that any other order takes very long.
    """

    entries: list[Entry] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)
    close: Callable[[], None] = lambda: None
    forwards_only: bool = False


def list_images(path: Path) -> Listing:
    """Every image file in ``path``: a folder, a zip or a tar (plain, .gz, .bz2, .xz).

    An image file is one with an image's suffix. Hidden files and folders, and those that macOS adds to archives, are
    ignored. Links are followed in folders, each real folder entered once; in archives they count as unreadable.

    Raises:
        UserError: if ``path`` is none of these, or is damaged.
    """
    if path.is_dir():
        return _list_folder(path)
    try:
        if zipfile.is_zipfile(path):
            return _list_zip(zipfile.ZipFile(path))
        if tarfile.is_tarfile(path):
            return _list_tar(tarfile.open(path))
    except _DAMAGED as error:
        raise UserError(f"cannot read {str(path)!r} ({one_line(error)}): download or pack it again") from error
    raise UserError(f"{str(path)!r} is no folder and no whole zip or tar archive: give one of these")


def one_line(error: BaseException) -> str:
    """What an error says, on one line; its type where it says nothing."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split()) or type(error).__name__


def _list_folder(folder: Path) -> Listing:
    listing = Listing()
    entered: set[tuple[int, int]] = set()
    waiting = [folder]
    while waiting:
        here = waiting.pop()
        try:
            status = here.stat()
            if (status.st_dev, status.st_ino) in entered:
                continue
            entered.add((status.st_dev, status.st_ino))
            children = [(child, child.is_dir()) for child in sorted(here.iterdir(), reverse=True)]
        except OSError as error:
            listing.skipped.append(Skipped(_relative(here, folder), one_line(error)))
            continue
        for child, is_folder in children:
            if _hidden(child.name):
                continue
            if is_folder:
                waiting.append(child)
            elif child.suffix.lower() in SUFFIXES:
                listing.entries.append(Entry(_relative(child, folder), partial(_read_file, child)))
    listing.entries.sort(key=lambda entry: entry.name)
    return listing


def _list_zip(archive: zipfile.ZipFile) -> Listing:
    listing = Listing(close=archive.close)
    # Packers on Windows may write backslashes. Of entries of one name the last counts, as it does when extracting.
    infos = {info.filename.replace("\\", "/"): info for info in archive.infolist() if not info.is_dir()}
    for name in sorted(infos):
        if _is_image(name):
            read = partial(_read_stream, infos[name].file_size, partial(archive.open, infos[name]))
            listing.entries.append(Entry(name, read))
    return listing


def _list_tar(archive: tarfile.TarFile) -> Listing:
    # what is not the file itself decompresses it
    listing = Listing(close=archive.close, forwards_only=not isinstance(archive.fileobj, io.BufferedReader))
    members = {member.name: member for member in archive.getmembers() if not member.isdir()}
    # In the order of the archive: a compressed one can only be read forwards.
    for name, member in sorted(members.items(), key=lambda item: item[1].offset):
        if not _is_image(name):
            continue
        if member.isreg():
            listing.entries.append(
                Entry(name, partial(_read_stream, member.size, partial(_open_member, archive, member)))
            )
        else:
            listing.skipped.append(Skipped(name, "a link or special file inside an archive"))
    return listing


def _open_member(archive: tarfile.TarFile, member: tarfile.TarInfo) -> IO[bytes]:
    stream = archive.extractfile(member)
    assert stream is not None, "only regular members are listed"
    return stream


def _read_file(path: Path) -> bytes:
    try:
        if not path.is_file():
            raise UnreadableError("a broken link" if path.is_symlink() else "not a regular file")
        return _read_stream(path.stat().st_size, lambda: path.open("rb"))
    except OSError as error:
        raise UnreadableError(one_line(error)) from error


def _read_stream(size: int, open_stream: Callable[[], IO[bytes]]) -> bytes:
    """Reads at most the ``size`` bytes that the source declares, so that a false declaration gains nothing."""
    if size > MAX_FILE_BYTES:
        raise UnreadableError(f"{size} bytes are more than the {MAX_FILE_BYTES} allowed")
    try:
        with open_stream() as stream:
            return stream.read(size)
    except (*_DAMAGED, RuntimeError) as error:  # RuntimeError: a zip entry with a password or an unknown compression
        raise UnreadableError(one_line(error)) from error


def _is_image(name: str) -> bool:
    path = PurePosixPath(name)
    return path.suffix.lower() in SUFFIXES and not any(_hidden(part) for part in path.parts)


def _hidden(part: str) -> bool:
    return (part.startswith(".") and part not in (".", "..")) or part == "__MACOSX"


def _relative(path: Path, folder: Path) -> str:
    """The path inside ``folder``, with ``/``; bytes that are no text are replaced, so that it can be printed."""
    return os.fsencode(path.relative_to(folder).as_posix()).decode("utf-8", errors="replace")
