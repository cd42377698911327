"""Files of WebDataset shards: finding them, what they contain, and making them of any readable source."""

from __future__ import annotations

import io
import json
import re
import tarfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from itertools import chain, count, islice
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import torch

from fastssl.data.decode import SUFFIXES, UnreadableError, opened, upright
from fastssl.data.files import MAX_SKIPPED, Files
from fastssl.data.layout import arrange
from fastssl.data.opening import open_all, refuse_too_many
from fastssl.data.reading import Progress, counted, no_image, quote
from fastssl.data.sources import Skipped, StrictMember, find_files, is_there, list_images, one_line
from fastssl.errors import UserError, needed
from fastssl.files import atomic_write

# The parts of a sample that are its image.
KEYS = ("jpg", "jpeg", "png", "webp")

# How many samples each shard has, beside the shards, in the form of the `webdataset` package's own `wids`.
INDEX = "index.json"

_BLOCK = 512  # of a tar, in bytes
_LEFT_OUT = "the shards leave it out"
# What files begin with that gzip, bzip2, xz and Zstandard made.
_COMPRESSED = re.compile(rb"\x1f\x8b|BZh[1-9]1AY&SY|\xfd7zXZ|\x28\xb5\x2f\xfd")
_PACKED = (".gz", ".tgz", ".bz2", ".xz", ".zst")


def require() -> Any:
    """The module ``webdataset``.

    Raises:
        UserError: saying what to install, where it is missing.
    """
    return needed("webdataset", "shards need the package webdataset", "pip install 'fastssl[webdataset]'")


@dataclass(frozen=True)
class Shards:
    """Shards and how many samples each has.

    Args:
        paths: of the shards with at least one sample.
        counts: their samples.
        skipped: the shards that cannot be read, or not to their end.
    """

    paths: tuple[Path, ...]
    counts: tuple[int, ...]
    skipped: tuple[Skipped, ...] = ()

    def __len__(self) -> int:
        """How many samples there are in all."""
        return sum(self.counts)

    def __repr__(self) -> str:
        shards, samples = counted(len(self.paths), "shard"), counted(len(self), "sample")
        return f"Shards({shards}, {samples}, {len(self.skipped)} skipped)"


class Member(NamedTuple):
    """An image inside a shard: its name and where its bytes are."""

    name: str
    offset: int
    size: int


def list_shards(
    source: str | Path | Sequence[str | Path], *, max_skipped: float = MAX_SKIPPED, progress: Progress | None = None
) -> Shards:
    """Finds shards and counts their samples.

    The counts of shards that are in the ``index.json`` beside them, with the file size they have now, are taken from
    there; others are read through once, header by header. ``write_index`` writes that file. Of a folder, a shard that
    is listed there and is gone counts as one that cannot be read.

    Args:
        source: a folder of ``.tar`` files, or one path or several, which may have braces, such as
            ``"train-{000000..000146}.tar"``; in this machine's file system.
        max_skipped: the share of shards that cannot be read at all, in [0, 1], above which they are refused; a single
            one is always allowed.
        progress: called with (shards done, shards in all) after each shard.
    Raises:
        UserError: if there is no sample, or too many shards that cannot be read.
    """
    patterns = [str(item) for item in ([source] if isinstance(source, str | Path) else source)]
    told = ", ".join(map(repr, patterns[:3])) + (", ..." if len(patterns) > 3 else "")
    paths = _paths(patterns, told)
    known, skipped = _indexed(paths)
    lost: list[Skipped] = []

    def samples_of(_: str, path: Path) -> tuple[int, str | None]:
        samples, problem = (known[path], None) if path in known else _count(path)
        if not samples:
            raise UnreadableError(problem or "no sample in it")
        return samples, problem

    found = open_all([(path.name, path) for path in paths], samples_of, lost, progress)
    if not found:
        raise UserError(f"no image in {told} ({quote(lost)}): give shards with samples of {', '.join(KEYS)}")
    refuse_too_many(lost, len(paths), max_skipped, "shards that cannot be read", "restore, repair or remove them")
    skipped += [Skipped(paths[i].name, problem) for i, (_, problem) in found if problem]
    return Shards(tuple(paths[i] for i, _ in found), tuple(samples for _, (samples, _) in found), tuple(skipped + lost))


def are_at(source: str) -> bool:
    """Whether ``source`` means shards: a path of .tar files with braces, or a folder of them and of no images."""
    if "{" in source and source.endswith(".tar"):
        return not Path(source).exists()
    folder = Path(source)
    with suppress(OSError):  # a path that cannot be looked up, say for its length, is none
        return folder.is_dir() and any(folder.glob("*.tar")) and not find_files(folder, SUFFIXES)[0]
    return False


def write_index(folder: Path) -> Path:
    """Counts the samples of the shards in ``folder`` and writes its ``index.json``, from which they are known at once.

    Raises:
        UserError: if there is no sample in a shard, or one is damaged.
    """
    entries = []
    for path in sorted(folder.glob("*.tar")):
        count, problem = _count(path)
        if problem:
            raise UserError(f"{str(path)!r} cannot be indexed: {problem}")
        entries.append({"url": path.name, "nsamples": count, "filesize": path.stat().st_size})
    if not entries:
        raise UserError(f"no .tar file in {str(folder)!r}: give a folder of shards")
    with atomic_write(folder / INDEX) as partial:
        partial.write_text(json.dumps({"wids_version": 1, "shardlist": entries}, indent=1) + "\n")
    return folder / INDEX


def pack(
    source: str | Path, out: str | Path, *, per_shard: int = 1000, seed: int = 0, progress: Progress | None = None
) -> Shards:
    """Makes shards of an image folder, zip or tar, each written whole or not at all, and at the end ``index.json``.

    The images are shuffled, so that each shard is a sample of all; those of a compressed tar stay as they lie. JPEG,
    PNG and WebP files are stored as they are, others as PNG. A sample has also a ``json`` with the image's ``name`` in
    its source and, where folders name classes (``layout.arrange``), ``class``, and then a ``cls`` with its number.

    Args:
        source: the images; of a set with folders for training and testing give the one to train on.
        out: a folder without shards, which is made where there is none.
        per_shard: samples of a shard; the last may have fewer.
        seed: of the order.
        progress: called with (files done, files in all) after each file.
    Returns:
        The shards, with the files that could not be used in ``skipped``. Those are named by warnings, and counted.
    Raises:
        UserError: if the source is none or has no readable image, ``out`` has shards already or cannot be written, or
            ``per_shard`` is below 1.
    """
    folder = Path(out)
    if per_shard < 1:
        raise UserError(f"per_shard must be at least 1; got {per_shard}")
    if any(folder.glob("*.tar")):
        raise UserError(f"{str(out)!r} has shards already: give another folder")
    writer = require().TarWriter
    with closing(list_images(source)) as listing:
        if not listing.entries:
            raise no_image(str(source), listing.skipped)
        for item in listing.skipped:
            warnings.warn(f"{item.name!r} cannot be read ({item.reason}): {_LEFT_OUT}", stacklevel=2)
        files = Files(listing, 1.0, _LEFT_OUT)
        samples = _samples(files, seed, progress)
        for number in count():
            first = next(samples, None)
            if first is None:
                break
            with (
                atomic_write(folder / f"{number:06}.tar") as partial,
                partial.open("wb") as file,
                writer(file, encoder=False, mtime=0) as shard,
            ):
                for sample in chain([first], islice(samples, per_shard - 1)):
                    shard.write(sample)
    if not number:
        raise UserError(f"no readable image in {str(source)!r} ({quote(files.skipped)}): give whole image files")
    write_index(folder)
    shards = replace(list_shards(folder), skipped=files.skipped)
    if shards.skipped:
        warnings.warn(
            f"left out of the shards of {str(source)!r}: {counted(len(shards.skipped), 'file')}", stacklevel=2
        )
    return shards


def _samples(files: Files, seed: int, progress: Progress | None) -> Iterator[dict[str, Any]]:
    """What the readable ones of ``files`` become, in the order of the shards."""
    listing = files.listing
    total = len(listing.entries)
    layout = arrange([entry.name for entry in listing.entries])
    order = torch.arange(total)
    if not listing.forwards_only:
        order = torch.randperm(total, generator=torch.Generator().manual_seed(seed))
    number = 0
    for done, position in enumerate(order.tolist(), 1):
        name = listing.entries[position].name
        stored = files.read(position, partial(_stored, name))
        if stored is not None:
            about = {"name": name}
            sample: dict[str, Any] = {"__key__": f"{number:08}", stored[0]: stored[1]}
            if layout.labels[position] >= 0:
                about["class"] = layout.classes[layout.labels[position]]
                sample["cls"] = str(layout.labels[position]).encode()
            yield sample | {"json": json.dumps(about).encode()}
            number += 1
        if progress is not None:
            progress(done, total)


def _stored(name: str, data: bytes) -> tuple[str, bytes]:
    """The part of a sample that an image file becomes, and its bytes."""
    part = PurePosixPath(name).suffix[1:].lower().replace("jfif", "jpg")
    with opened(data) as image:
        if part in KEYS:
            return part, data
        buffer = io.BytesIO()
        upright(image).save(buffer, "PNG")
        return "png", buffer.getvalue()


def scan(path: Path) -> tuple[list[Member], str | None]:
    """The images of a shard, of each sample the first, and what is wrong from there on, if anything is.

    A sample is what the ``webdataset`` package takes for one: files that follow each other and have the same name up
    to the first dot after the folders.
    """
    split = require().tariterators.base_plus_ext
    found: list[Member] = []
    last = None
    try:
        total = path.stat().st_size
        _refuse_compressed(path)
        with tarfile.open(path, "r:", tarinfo=StrictMember) as archive:
            for member in archive:
                if member.offset_data + member.size > total:
                    raise tarfile.ReadError(f"cut short within {member.name!r}")
                key, part = split(member.name)
                if member.isreg() and key is not None and key != last and part.lower() in KEYS:
                    found.append(Member(member.name, member.offset_data, member.size))
                    last = key
            end = archive.offset
        with path.open("rb") as file:
            file.seek(end)
            block = file.read(_BLOCK)
        if block != bytes(_BLOCK):
            raise tarfile.ReadError("cut short")
    except Exception as error:  # a damaged archive may raise anything
        return found, f"{one_line(error)} (after {len(found)} samples)"
    return found, None


def _refuse_compressed(path: Path) -> None:
    with path.open("rb") as file:
        if _COMPRESSED.match(file.read(10)):
            raise tarfile.ReadError("compressed, so that no sample in it can be reached: decompress it")


def _paths(patterns: Sequence[str], told: str) -> list[Path]:
    """Of all shards, in the order given, which is ``told`` of in errors."""
    advice = "give a folder of shards (pack makes them of images), or paths such as 'train-{000..146}.tar'"
    if len(patterns) == 1 and Path(patterns[0]).is_dir():
        found = _in_folder(Path(patterns[0]))
        if not found and any(path.suffix in _PACKED for path in Path(patterns[0]).iterdir()):
            raise UserError(f"the shards in {told} are compressed, so that no sample can be reached: decompress them")
    else:
        require()
        braces = import_module("braceexpand")
        try:
            found = [Path(path) for pattern in patterns for path in braces.braceexpand(pattern)]
        except braces.UnbalancedBracesError as error:
            raise UserError(f"{told} has a brace without its other half: {error}") from error
    if not found:
        raise UserError(f"no .tar file in {told or 'an empty list'}: {advice}")
    if len(set(found)) < len(found):
        raise UserError(f"{told} names a shard twice")
    if not any(map(is_there, found)):
        what = "no file or folder" if len(found) == 1 else f"none of the {len(found)} files is there of"
        raise UserError(f"{what} {told}: {advice}")
    return found


def _count(path: Path) -> tuple[int, str | None]:
    members, problem = scan(path)
    return len(members), problem or (None if members else f"no sample has a {', '.join(KEYS)}")


def _indexed(paths: Sequence[Path]) -> tuple[dict[Path, int], list[Skipped]]:
    """The samples of the shards that an index tells of as they are, and the indices that cannot be read."""
    counts: dict[Path, int] = {}
    skipped = []
    for folder in sorted({path.parent for path in paths}):
        sizes, problem = _index(folder)
        skipped += [] if problem is None else [Skipped(INDEX, problem)]
        for path in paths:
            if path.parent == folder and path.name in sizes and is_there(path):
                samples, size = sizes[path.name]
                if size == path.stat().st_size:
                    counts[path] = max(0, samples)
    return counts, skipped


def _index(folder: Path) -> tuple[dict[str, tuple[int, int]], str | None]:
    """The samples and the file size of each shard that the index of ``folder`` lists, and why it cannot be read."""
    try:
        listed = json.loads((folder / INDEX).read_text())["shardlist"]
        return {str(entry["url"]): (int(entry["nsamples"]), int(entry["filesize"])) for entry in listed}, None
    except FileNotFoundError:
        return {}, None
    except (OSError, ValueError, KeyError, TypeError) as error:
        return {}, f"no list of shards: {one_line(error)}"


def _in_folder(folder: Path) -> list[Path]:
    """The shards in ``folder``, and those that its index lists and that are not there."""
    found = sorted(folder.glob("*.tar"))
    listed = [name for name in _index(folder)[0] if name.endswith(".tar") and Path(name).name == name]
    return sorted({*found, *(folder / name for name in listed)}) if found else []
