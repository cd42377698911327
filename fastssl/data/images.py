"""Any readable source as uint8 images of one size, with labels where its folders name classes; in memory or not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from fastssl.data import idx
from fastssl.data.cache import Cache
from fastssl.data.contents import WHITE, Contents, Wanted, begun, read, undecoded
from fastssl.data.files import ANOTHER, MAX_SKIPPED, Files
from fastssl.data.imageset import ImageSet, Splits
from fastssl.data.reading import Progress
from fastssl.data.rows import FileRows
from fastssl.data.sources import Entries, Listing, Skipped, is_there, list_images
from fastssl.errors import UserError, nearest, unknown

__all__ = [
    "EMBEDDED",
    "MAX_SKIPPED",
    "Cache",
    "ImageSet",
    "Progress",
    "Skipped",
    "Splits",
    "files_of",
    "load",
    "load_all",
    "load_lazily",
    "stream",
]

# Data sets that come with the package, by name.
EMBEDDED = {"clipart": Path(__file__).with_name("clipart.zip")}

_ONE_BY_ONE = "reads single files in any order: take the engine 'native'"

# The share of each class that is held out where the source has no split of its own.
TEST_SHARE = 0.2


def load(
    source: str,
    *,
    size: int,
    seed: int = 0,
    max_skipped: float = MAX_SKIPPED,
    progress: Progress | None = None,
    cache: Cache | None = None,
) -> Splits:
    """Reads ``source`` and splits it: as its folders say, else a fifth of each class is the test set.

    Args:
        source: an embedded set (``EMBEDDED``), or the path of an image folder, a zip or tar of images, or a folder of
            idx files. ``layout.arrange`` says what folders mean.
        size: images are resized (short side, antialiased) and centre-cropped to ``size`` x ``size``.
        seed: of the split, where it is drawn.
        max_skipped: the share of unreadable files, in [0, 1], above which the source is refused; a single unreadable
            file is always allowed.
        progress: called with (files done, files in all) after each file that is decoded; not for idx files, which are
            read whole, and not where the cache has the images; and before while images are copied that are kept of the
            source as it was, or of another one.
        cache: keeps the decoded images for the next start, and for other processes; without one they are in memory
            alone.

    Raises:
        UserError: if the source does not exist, holds no readable image, or too many files that cannot be read.
    """
    return _split(read(_wanted(source, size, max_skipped, in_split_only=True), progress, cache), seed)


def load_all(
    source: str,
    *,
    size: int,
    max_skipped: float = MAX_SKIPPED,
    progress: Progress | None = None,
    cache: Cache | None = None,
) -> ImageSet:
    """Every image of ``source``, whatever split it is in. Arguments and errors are those of ``load``."""
    return read(_wanted(source, size, max_skipped, in_split_only=False), progress, cache).data


def load_lazily(
    source: str,
    *,
    size: int,
    seed: int = 0,
    max_skipped: float = MAX_SKIPPED,
    progress: Progress | None = None,
    cache: Cache | None = None,
) -> Splits:
    """``load`` for a quick start: each image is decoded when it is first asked for, and then kept, as ``load`` does.

    So files that cannot be read are met on the way, as with ``stream``: they are named by a warning and in ``skipped``,
    white where they are looked at, and left out by `ImageSet.readable`. Nothing depends on what is decoded already.

    Args:
        source: as for ``load``. Of a compressed tar all images are decoded now, as ``load`` does, and without warnings;
            idx files are read whole.
        size: of the images, as for ``load``; so are the other arguments.
        progress: called with (files done, files in all) after each file of a compressed tar, and while images that are
            kept of the source as it was, or of another one, are copied.

    Raises:
        UserError: if the source does not exist, or holds no image.
    """
    return _split(begun(_wanted(source, size, max_skipped, in_split_only=True), cache, WHITE, progress), seed)


def stream(
    source: str, *, size: int, seed: int = 0, max_skipped: float = MAX_SKIPPED, reader: str = "streaming"
) -> Splits:
    """``load`` for what does not fit into memory: names alone are read, and images are decoded as they are asked for.

    So files that cannot be read are met on the way. They are then named by a warning and in ``skipped``, and white.

    Args:
        source: an embedded set, or the path of an image folder, a zip, or a tar that is not compressed.
        size: of the images, as for ``load``; so are ``seed`` and ``max_skipped``.
        reader: what reads the files one by one, for the error that refuses the source.

    Raises:
        UserError: if the source does not exist, holds no image, or its files cannot be read one by one in any order.
    """
    wanted = _wanted(source, size, max_skipped, in_split_only=True)
    return _split(undecoded(wanted, _list_single(source, reader)), seed)


def files_of(data: ImageSet, engine: str) -> Files:
    """The files that ``data`` was read from, in its order, for an engine that reads them itself; to be closed.

    Raises:
        UserError: naming the engine, if they cannot be read one by one in any order, as idx files and compressed tars,
            or some are gone.
    """
    reader = f"the engine {engine!r}"
    if isinstance(data.images, FileRows):  # which reads them as well, when the engine is closed too
        _refuse_forwards_only(data.images.files.listing, data.source, reader)
        return data.images.files.part(data.images.rows.tolist(), ANOTHER)
    listing = _list_single(data.source, reader)
    entries = Entries.of(listing.entries)
    places = {name: i for i, name in enumerate(entries.names)}
    if gone := next((name for name in data.names if name not in places), None):
        listing.close()
        raise UserError(f"{gone!r} in {data.source!r} was there and is gone: start anew")
    own = replace(listing, entries=entries.subset([places[name] for name in data.names]), skipped=[])
    return Files(own, MAX_SKIPPED, ANOTHER)


def list_files(source: str) -> Listing:
    """The image files of ``source``, in the order in which reading them is cheapest; to be closed. Idx files are none.

    Raises:
        UserError: if there is no such source, or it is damaged.
    """
    return list_images(_locate(source))


def stratified_split(labels: Tensor, share: float, seed: int) -> tuple[Tensor, Tensor]:
    """Positions (sorted int64) of a seeded split that holds out ``share`` of each class of ``labels`` (N,) int64.

    Rounded for each class, but at least one image of a class of two or more is on either side; a class of one image
    is for training.
    """
    generator = torch.Generator().manual_seed(seed)
    held_out = torch.zeros(len(labels), dtype=torch.bool)
    for label in sorted(set(labels.tolist())):
        members = (labels == label).nonzero()[:, 0]
        members = members[torch.randperm(len(members), generator=generator)]
        count = min(max(1, round(share * len(members))), len(members) - 1)
        held_out[members[:count]] = True
    return (~held_out).nonzero()[:, 0], held_out.nonzero()[:, 0]


def _wanted(source: str, size: int, max_skipped: float, *, in_split_only: bool) -> Wanted:
    if size < 1:
        raise UserError(f"the image size must be at least 1; got {size}")
    if not 0 <= max_skipped <= 1:
        raise UserError(f"max_skipped is a share of the files, from 0 to 1; got {max_skipped}")
    return Wanted(source, _locate(source).resolve(), size, in_split_only, max_skipped)


def _split(contents: Contents, seed: int) -> Splits:
    data, splits = contents.data, contents.splits
    if splits is not None:
        train, test = (
            torch.tensor([i for i, split in enumerate(splits) if split == name]) for name in ("train", "test")
        )
    elif data.labels is not None:
        train, test = stratified_split(data.labels, TEST_SHARE, seed)
    else:
        return Splits(data, None)
    if not len(train):
        raise UserError(f"no readable training image in {data.source!r}: put some into its train folder")
    return Splits(data.subset(train), data.subset(test) if len(test) else None)


def _list_single(source: str, reader: str) -> Listing:
    """The files of ``source`` for a reader that takes single ones, in any order."""
    path = _locate(source)
    if path.is_dir() and idx.find(path):
        raise UserError(f"{source!r} has all its images in idx files, and {reader} {_ONE_BY_ONE}")
    listing = list_files(source)
    _refuse_forwards_only(listing, source, reader)
    return listing


def _refuse_forwards_only(listing: Listing, source: str, reader: str) -> None:
    if listing.forwards_only:
        listing.close()
        raise UserError(f"{source!r} is a compressed tar, and {reader} {_ONE_BY_ONE}, or unpack it")


def _locate(source: str) -> Path:
    path = EMBEDDED.get(source) or Path(source)
    if source and is_there(path):
        return path
    if path.name == source and nearest(source, EMBEDDED) is not None:
        raise UserError(f"{unknown('data set', source, EMBEDDED)}, or give the path of a folder, zip or tar of images")
    raise UserError(
        f"no file or folder {source!r}: check the path, or give {' or '.join(map(repr, EMBEDDED))} for embedded images"
    )
