"""Where image files come from: a folder, a zip or a tar. Nothing is ever extracted to disk."""

from __future__ import annotations

import io
import os
import tarfile
import threading
import zipfile
from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from hashlib import blake2b
from operator import itemgetter
from pathlib import Path, PurePosixPath
from typing import NamedTuple, overload

from fastssl.data.decode import SUFFIXES, UnreadableError
from fastssl.errors import UserError

# A single file above this is refused: no photograph is that large, and a crafted archive entry can be.
MAX_FILE_BYTES = 256 << 20

# Of an archive, what its stamp takes from either end: the first names and, of a zip, the check sums.
_ENDS = 64 << 10
# Of a folder, the files of which a stamp takes both ends; of an archive, the blocks in between. And their bytes.
_SAMPLES, _SAMPLE = 64, 4 << 10


@dataclass(frozen=True)
class Skipped:
    """A file that could not be used, and why."""

    name: str
    reason: str


class Entry(NamedTuple):
    """A file that should hold an image: its path inside the source, with ``/``, how to get its bytes, how many.

    ``read`` raises ``UnreadableError`` if they cannot be had, and may be called from any thread. ``size`` is -1 where
    the source does not tell.
    """

    name: str
    read: Callable[[], bytes]
    size: int = -1


class Entries(Sequence[Entry]):
    """Entries of which each is made when it is asked for: there may be millions.

    Args:
        names: of the files.
        sizes: of each, in bytes.
        read: gives the bytes of the one at a position.
        times: of each, when it was last changed, and when in any way, where the source tells both.
    """

    def __init__(
        self,
        names: Sequence[str],
        sizes: Sequence[int],
        read: Callable[[int], bytes],
        times: Sequence[str] | None = None,
    ) -> None:
        self.names, self.sizes, self.times, self._read = names, sizes, times, read

    def __len__(self) -> int:
        return len(self.names)

    @overload
    def __getitem__(self, index: int) -> Entry: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Entry]: ...

    def __getitem__(self, index: int | slice) -> Entry | Sequence[Entry]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return Entry(self.names[index], partial(self._read, index), self.sizes[index])

    def subset(self, positions: Sequence[int]) -> Entries:
        """Those at ``positions``, in their order."""
        names, sizes = [self.names[i] for i in positions], [self.sizes[i] for i in positions]
        times = None if self.times is None else [self.times[i] for i in positions]
        return Entries(names, sizes, lambda i: self._read(positions[i]), times)

    def guarded(self, look: Callable[[], None]) -> Entries:
        """The same; ``look`` is called before each is read, and what it raises ends the reading."""

        def read(position: int) -> bytes:
            look()
            return self._read(position)

        return Entries(self.names, self.sizes, read, self.times)

    @classmethod
    def of(cls, entries: Sequence[Entry]) -> Entries:
        """Any entries as such."""
        if isinstance(entries, Entries):
            return entries
        names, sizes = [entry.name for entry in entries], [entry.size for entry in entries]
        return Entries(names, sizes, lambda i: entries[i].read())


@dataclass
class Listing:
    """The image files of a source, in the order in which reading them is cheapest, and what cannot even be opened.

    Close it when all is read. ``forwards_only`` says that any other order takes very long.
    """

    entries: Sequence[Entry] = ()
    skipped: list[Skipped] = field(default_factory=list)
    close: Callable[[], None] = lambda: None
    forwards_only: bool = False

    def __len__(self) -> int:
        return len(self.entries)

    def __repr__(self) -> str:
        forwards = ", to be read forwards only" if self.forwards_only else ""
        return f"Listing({len(self):,} file{'s' * (len(self) != 1)}, {len(self.skipped)} skipped{forwards})"


def existing(source: str | Path, advice: str) -> Path:
    """The path of ``source``.

    Raises:
        UserError: with ``advice``, if there is nothing.
    """
    if not is_there(source):
        raise UserError(f"no file or folder {str(source)!r}: {advice}")
    return Path(source)


def is_there(source: str | Path) -> bool:
    """Whether there is such a file or folder; a path that cannot be looked up, say for its length, is none."""
    with suppress(OSError):
        return bool(str(source)) and Path(source).exists()
    return False


def list_images(path: str | Path) -> Listing:
    """Every image file in ``path``: a folder, a zip or a tar (plain, .gz, .bz2, .xz).

    An image file is one with an image's suffix. Hidden files and folders, and those that macOS adds to archives, are
    ignored. Links are followed in folders, each real folder entered once; in archives they count as unreadable.

    Where there is none the listing is empty, and no loader takes it.

    Raises:
        UserError: if ``path`` is none of these, or is damaged.
    """
    path = existing(path, "give the path of a folder, zip or tar of images")
    if path.is_dir():
        return _list_folder(path)
    try:
        if zipfile.is_zipfile(path):
            return _list_zip(zipfile.ZipFile(path))
        if tarfile.is_tarfile(path):
            return _list_tar(tarfile.open(path, tarinfo=StrictMember))
    except Exception as error:  # what a damaged archive makes these modules raise may be anything
        raise UserError(f"cannot read {str(path)!r} ({one_line(error)}): download or pack it again") from error
    raise UserError(f"{str(path)!r} is no folder and no whole zip or tar archive: give one of these")


def stamp(path: Path) -> str:
    """What changes whenever the images in ``path`` do, without reading all of them.

    Of a folder, a digest of each image file's name, size and two times: that of its last change, which programs set
    back when they unpack or copy, and that which the system keeps of any change of its bytes, name or rights, and lets
    no program set. So a file that was written to is noticed though size and time of change are as they were, on
    whatever keeps that second time, as Linux's and macOS's own file systems do. For others (FAT, some network drives)
    the first and last 4 KiB of 64 files, spread evenly, are in the digest too: a set that was exchanged is
    noticed, a single file that was exchanged for one of its size and time hardly ever.

    Of an archive, a digest of its size, the two times, both ends (64 KiB) and 64 blocks of 4 KiB in between.

    Raises:
        OSError: if ``path`` cannot be read.
    """
    digest = blake2b(digest_size=16)
    if path.is_dir():
        found = _scan(path)[0]
        digest.update("\n".join([f"{_printable(name)}\0{size}\0{times}" for name, size, times in found]).encode())
        for name, _, _ in found[:: max(1, len(found) // _SAMPLES)][:_SAMPLES]:
            with suppress(OSError):
                _take(digest, path / name, _SAMPLE, 0)
    else:
        status = path.stat()
        digest.update(f"{status.st_size}\0{_times(status)}".encode())
        _take(digest, path, _ENDS, _SAMPLES)
    return digest.hexdigest()


def _take(digest: blake2b, path: Path, ends: int, blocks: int) -> None:
    """Adds so many bytes of a file's ends, and so many blocks in between."""
    with path.open("rb") as file:
        digest.update(file.read(ends))
        size = file.seek(0, os.SEEK_END)
        inside = max(0, size - 2 * ends)
        for block in range(blocks if inside else 0):
            file.seek(ends + inside * block // blocks)
            digest.update(file.read(_SAMPLE))
        file.seek(max(0, size - ends))
        digest.update(file.read(ends))


def _times(status: os.stat_result) -> str:
    return f"{status.st_mtime_ns} {status.st_ctime_ns}"


def one_line(error: BaseException) -> str:
    """What an error says, on one line; its type where it says nothing."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split()) or type(error).__name__


# An image file of a folder: its path inside it, its bytes, and when it was changed. A plain tuple, for there may be
# millions, and a named one takes several times as long to make.
_File = tuple[str, int, str]


def find_files(folder: Path, suffixes: Container[str]) -> tuple[list[tuple[str, Path]], list[Skipped]]:
    """The files below ``folder`` with one of ``suffixes`` (in lower case), and the folders that cannot be read.

    Each by its path inside ``folder``, with ``/``, and its whole path; in the order of the former. Hidden ones are left
    out; links are followed, each real folder entered once.
    """
    found, skipped = _scan(folder, suffixes)
    return [(_printable(name), folder / name) for name, _, _ in found], skipped


def _scan(folder: Path, suffixes: Container[str] = SUFFIXES) -> tuple[list[_File], list[Skipped]]:
    """All files below ``folder`` with one of ``suffixes``, by name."""
    found: list[_File] = []
    skipped: list[Skipped] = []
    entered: set[tuple[int, int]] = set()
    waiting = [""]
    while waiting:
        here = waiting.pop()
        inside: list[str] = []
        try:
            status = (folder / here).stat()
            if (status.st_dev, status.st_ino) in entered:
                continue
            entered.add((status.st_dev, status.st_ino))
            with os.scandir(folder / here) as children:
                for child in children:
                    name = child.name
                    if _hidden(name):
                        continue
                    if _is_folder(child):
                        inside.append(f"{here}{name}/")
                    elif _has_suffix(name, suffixes):
                        found.append((here + name, *_size_and_times(child)))
        except OSError as error:
            skipped.append(Skipped(_printable(here.rstrip("/") or "."), one_line(error)))
        waiting += sorted(inside, reverse=True)
    found.sort(key=itemgetter(0))
    return found, skipped


def _is_folder(child: os.DirEntry[str]) -> bool:
    try:
        return child.is_dir()
    except OSError:  # a link to itself
        return False


def _size_and_times(child: os.DirEntry[str]) -> tuple[int, str]:
    try:
        status = child.stat()
    except OSError:  # a broken link; who reads it is told
        return -1, ""
    return status.st_size, _times(status)


def _list_folder(folder: Path) -> Listing:
    found, skipped = _scan(folder)
    names, sizes = [_printable(name) for name, _, _ in found], [size for _, size, _ in found]
    times = [times for _, _, times in found]
    return Listing(Entries(names, sizes, lambda i: _read_file(folder / found[i][0]), times), skipped)


def _list_zip(archive: zipfile.ZipFile) -> Listing:
    lock = threading.Lock()
    # Packers on Windows may write backslashes. Of entries of one name the last counts, as it does when extracting.
    infos = {info.filename.replace("\\", "/"): info for info in archive.infolist() if not info.is_dir()}
    names = sorted(filter(_is_image, infos))
    sizes = [infos[name].file_size for name in names]
    return Listing(Entries(names, sizes, lambda i: _read_zipped(archive, lock, infos[names[i]])), close=archive.close)


def _list_tar(archive: tarfile.TarFile) -> Listing:
    # what is not the file itself decompresses it
    forwards_only = not isinstance(archive.fileobj, io.BufferedReader)
    lock = threading.Lock()
    members = {member.name: member for member in archive.getmembers() if not member.isdir() and _is_image(member.name)}
    # In the order of the archive: a compressed one can only be read forwards.
    files = sorted((member for member in members.values() if member.isreg()), key=lambda member: member.offset)
    names, sizes = [member.name for member in files], [member.size for member in files]
    others = [name for name, member in members.items() if not member.isreg()]
    skipped = [Skipped(name, "a link or special file inside an archive") for name in others]
    entries = Entries(names, sizes, lambda i: _read_tarred(archive, lock, files[i]))
    return Listing(entries, skipped, archive.close, forwards_only)


class StrictMember(tarfile.TarInfo):
    """A member of a tar whose damage is an error: the module ends the list at it, or never ends."""

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> StrictMember:
        try:
            return super().fromtarfile(archive)
        except tarfile.HeaderError as error:
            if type(error).__name__ in ("InvalidHeaderError", "TruncatedHeaderError"):  # others tell of the end
                raise tarfile.ReadError(f"a damaged header: {error}") from error
            raise

    def _block(self, count: int) -> int:
        if count < 0:  # would lead back to an earlier header, again and again (CVE-2025-8194)
            raise tarfile.ReadError("a damaged header: a negative size")
        return super()._block(count)  # type: ignore[misc,no-any-return]


def _read_file(file: Path) -> bytes:
    with _readable():
        if not file.is_file():
            raise UnreadableError("a broken link" if file.is_symlink() else "not a regular file")
        size = _acceptable(file.stat().st_size)
        with file.open("rb") as stream:
            return stream.read(size)


def _read_zipped(archive: zipfile.ZipFile, lock: threading.Lock, info: zipfile.ZipInfo) -> bytes:
    size = _acceptable(info.file_size)
    with _readable():
        with lock:  # the module counts its open entries; it reads and inflates them from any thread
            stream = archive.open(info)
        try:
            return stream.read(size)
        finally:
            with lock:
                stream.close()


def _read_tarred(archive: tarfile.TarFile, lock: threading.Lock, member: tarfile.TarInfo) -> bytes:
    size = _acceptable(member.size)
    with _readable(), lock:  # all members are read by one position in the file
        stream = archive.extractfile(member)
        assert stream is not None, "only regular members are listed"
        return stream.read(size)


def _acceptable(size: int) -> int:
    """The bytes that the source declares. No more are read, so that a false declaration gains nothing."""
    if size > MAX_FILE_BYTES:
        raise UnreadableError(f"{size} bytes are more than the {MAX_FILE_BYTES} allowed")
    return size


@contextmanager
def _readable() -> Iterator[None]:
    """Whatever fails within is an ``UnreadableError``."""
    try:
        yield
    except UnreadableError:
        raise
    except Exception as error:  # a password, an unknown compression, or what damage makes the modules raise
        raise UnreadableError(one_line(error)) from error


def _has_suffix(name: str, suffixes: Container[str]) -> bool:
    stem, _, ending = name.rpartition(".")
    return stem != "" and f".{ending.lower()}" in suffixes


def _is_image(name: str) -> bool:
    path = PurePosixPath(name)
    return _has_suffix(path.name, SUFFIXES) and not any(_hidden(part) for part in path.parts)


def _hidden(part: str) -> bool:
    return (part.startswith(".") and part not in (".", "..")) or part == "__MACOSX"


def _printable(name: str) -> str:
    """Bytes of a name that are no text are replaced, so that it can be printed."""
    return name if name.isascii() else os.fsencode(name).decode("utf-8", errors="replace")
