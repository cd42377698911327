"""What a source holds: from its files, decoded or not, or from the cache, if they are still what was kept of them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastssl.data import idx
from fastssl.data.cache import Cache, Kept
from fastssl.data.decode import SUFFIXES
from fastssl.data.files import Files, allowed
from fastssl.data.imageset import ImageSet
from fastssl.data.layout import Layout, arrange
from fastssl.data.reading import Progress, decode_all, quote
from fastssl.data.rows import Mapped, Rows, Undecoded
from fastssl.data.sources import Entries, Listing, Skipped, list_images, one_line, stamp
from fastssl.errors import UserError


@dataclass(frozen=True)
class Contents:
    """What was read of a source.

    Args:
        data: all images.
        splits: the one ("train", "test" or "") that each is in, if the source gives any.
        tried: how many files were to be decoded.
        unreadable: how many of them could not be.
        complete: whether a given split leaves none of the source's images out.
    """

    data: ImageSet
    splits: Sequence[str] | None
    tried: int
    unreadable: int
    complete: bool


@dataclass(frozen=True)
class Wanted:
    """What to read.

    Args:
        source: as the user gave it.
        path: where it is.
        size: side of the images, in pixels.
        in_split_only: whether images that a given split leaves out are left out.
        max_skipped: the share of unreadable files, in [0, 1], that is allowed; a single one always is.
    """

    source: str
    path: Path
    size: int
    in_split_only: bool
    max_skipped: float


def read(wanted: Wanted, progress: Progress | None, cache: Cache | None) -> Contents:
    """All of it decoded: in memory, or mapped from the cache, which it is written to if it is not there.

    Raises:
        UserError: if there is no readable image, or too many files that cannot be read.
    """
    if wanted.path.is_dir() and (files := idx.find(wanted.path)):
        return _read_idx(wanted.source, files, wanted.size)
    if cache is None:
        return _read_files(wanted, progress)
    try:
        now = stamp(wanted.path)
    except OSError as error:
        raise UserError(f"cannot read {wanted.source!r}: {one_line(error)}") from error
    if (contents := _find(wanted, cache, now)) is not None:
        return contents
    with cache.alone(_place(wanted, cache, everything=True)):
        if (contents := _find(wanted, cache, now)) is not None:  # another process was quicker
            return contents
        return _keep(_read_files(wanted, progress), wanted, cache, now)


def undecoded(wanted: Wanted, listing: Listing) -> Contents:
    """All of it as files that are decoded each time that they are asked for.

    Raises:
        UserError: if there is no image.
    """
    names, layout, positions = _arranged(wanted, listing)
    positions.sort(key=names.__getitem__)
    files = Files(listing, wanted.max_skipped, "white takes its place where it is looked at")
    images = Undecoded(files, torch.tensor(positions), wanted.size)
    return _contents(wanted, images, layout, names, positions, listing.skipped, len(positions))


def _place(wanted: Wanted, cache: Cache, *, everything: bool) -> Path:
    return cache.place(wanted.path, wanted.size, "all" if everything else "in splits")


def _find(wanted: Wanted, cache: Cache, now: str) -> Contents | None:
    """From the cache. All images of a source serve for those in its splits where these are all."""

    def fits(about: dict[str, Any]) -> bool:
        few = about["unreadable"] <= allowed(about["tried"], wanted.max_skipped)
        return few and (about["complete"] or everything != wanted.in_split_only)

    for everything in (True, False) if wanted.in_split_only else (True,):
        kept = cache.find(_place(wanted, cache, everything=everything), now, fits)
        if kept is not None:
            return _from_cache(wanted, kept)
    return None


def _from_cache(wanted: Wanted, kept: Kept) -> Contents:
    about = kept.about
    data = ImageSet(
        images=Mapped(kept.pixels, kept.sums, torch.arange(len(kept.pixels))),
        labels=None if about["labels"] is None else torch.tensor(about["labels"]),
        classes=tuple(about["classes"]),
        names=tuple(about["names"]),
        source=wanted.source,
        skipped=tuple(Skipped(*item) for item in about["skipped"]),
    )
    return Contents(data, about["splits"], about["tried"], about["unreadable"], about["complete"])


def _keep(contents: Contents, wanted: Wanted, cache: Cache, now: str) -> Contents:
    """The same from the cache, if it can be written."""
    data = contents.data
    assert isinstance(data.images, Tensor)
    about = {
        "labels": None if data.labels is None else data.labels.tolist(),
        "classes": data.classes,
        "names": data.names,
        "skipped": [(item.name, item.reason) for item in data.skipped],
        "splits": contents.splits,
        "tried": contents.tried,
        "unreadable": contents.unreadable,
        "complete": contents.complete,
    }
    everything = contents.complete or not wanted.in_split_only
    kept = cache.keep(_place(wanted, cache, everything=everything), now, about, data.images)
    return contents if kept is None else _from_cache(wanted, kept)


def _read_idx(source: str, files: dict[str, Path], size: int) -> Contents:
    parts = {split: idx.read(path, size) for split, path in files.items()}
    images = torch.cat([pixels for pixels, _ in parts.values()])
    known = [labels for _, labels in parts.values() if labels is not None]
    labels = torch.cat(known) if len(known) == len(parts) else None
    classes = () if labels is None else tuple(str(i) for i in range(int(labels.max()) + 1))
    names = tuple(f"{files[split].name}/{i:05}" for split, (pixels, _) in parts.items() for i in range(len(pixels)))
    splits = [split for split, (pixels, _) in parts.items() for _ in range(len(pixels))]
    data = ImageSet(images, labels, classes, names, source)
    return Contents(data, splits if len(parts) > 1 else None, len(names), 0, complete=True)


def _read_files(wanted: Wanted, progress: Progress | None) -> Contents:
    with closing(list_images(wanted.path)) as listing:
        names, layout, positions = _arranged(wanted, listing)
        entries = [listing.entries[i] for i in positions]
        images, kept, unreadable = decode_all(entries, wanted.size, allowed(len(entries), wanted.max_skipped), progress)
        skipped = tuple(listing.skipped + unreadable)
    if not kept:
        raise UserError(f"no readable image in {wanted.source!r} ({quote(skipped)}): give whole image files")
    by_name = sorted(range(len(kept)), key=lambda i: entries[kept[i]].name)
    if by_name != list(range(len(kept))):
        images = images[by_name]
    chosen = [positions[kept[i]] for i in by_name]
    contents = _contents(wanted, images, layout, names, chosen, skipped, len(positions))
    return replace(contents, unreadable=len(unreadable))


def _arranged(wanted: Wanted, listing: Listing) -> tuple[Sequence[str], Layout, list[int]]:
    """The names of all files, what their folders mean, and the positions of the files that are wanted."""
    names = Entries.of(listing.entries).names
    if not names:
        reasons = quote(listing.skipped) or f"no file ends in {', '.join(sorted(SUFFIXES))}"
        raise UserError(f"no image in {wanted.source!r} ({reasons}): give a folder, zip or tar of images")
    layout = arrange(names)
    return names, layout, [i for i, split in enumerate(layout.splits) if split or not wanted.in_split_only]


def _contents(
    wanted: Wanted,
    images: Tensor | Rows,
    layout: Layout,
    names: Sequence[str],
    chosen: Sequence[int],
    skipped: Sequence[Skipped],
    tried: int,
) -> Contents:
    """Of ``images``, which are those of the files at the positions ``chosen``."""
    labels = torch.tensor([layout.labels[i] for i in chosen])
    labelled = bool(layout.classes) and bool((labels >= 0).all())
    data = ImageSet(
        images=images,
        labels=labels if labelled else None,
        classes=layout.classes if labelled else (),
        names=tuple(names[i] for i in chosen),
        source=wanted.source,
        skipped=skipped,
    )
    splits = [layout.splits[i] for i in chosen] if layout.given else None
    return Contents(data, splits, tried, 0, complete=all(layout.splits))
