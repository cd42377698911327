"""What a source holds: from its files, decoded or not, or from the cache, if they are still what was kept of them."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from fastssl.data import idx
from fastssl.data.cache import Cache
from fastssl.data.files import Files
from fastssl.data.imageset import ImageSet
from fastssl.data.kept import Kept
from fastssl.data.layout import arrange
from fastssl.data.reading import Progress, no_image, quiet, quote
from fastssl.data.rows import Decoded, FileRows, InMemory, Undecoded
from fastssl.data.sources import Entries, Listing, Skipped, list_images, one_line, stamp
from fastssl.errors import UserError

# What becomes of an unreadable file where no engine takes another in its place.
WHITE = "training takes the next one, scores and pictures leave it out"


@dataclass(frozen=True)
class Contents:
    """What was read of a source.

    Args:
        data: all images.
        splits: the one ("train", "test" or "") that each is in, if the source gives any.
    """

    data: ImageSet
    splits: Sequence[str] | None


@dataclass(frozen=True)
class Wanted:
    """What to read.

    Args:
        source: as the user gave it.
        path: where it is, links followed: what a link leads to may become another folder meanwhile.
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
    """All images of it that can be read, decoded: in memory, or in the cache, if that is given and can be written.

    Raises:
        UserError: if there is no readable image, or too many files that cannot be read.
    """
    contents = begun(wanted, cache, None, progress)
    data = contents.data
    if not isinstance(data.images, Decoded):
        return contents
    try:
        with quiet():
            kept = data.images.readable(progress)
    finally:
        if cache is None:  # else they are read again, should the cache be damaged
            data.images.files.listing.close()
    if not len(kept):
        raise UserError(f"no readable image in {wanted.source!r} ({quote(data.skipped)}): give whole image files")
    part = data.subset(kept) if len(kept) < len(data) else data
    assert isinstance(part.images, Decoded)
    if cache is None:  # there is a tensor that holds just these
        assert isinstance(data.images.store, InMemory)
        pixels = data.images.store.pixels
        part = replace(part, images=pixels if part is data else pixels[kept])
    splits = None if contents.splits is None else [contents.splits[i] for i in kept.tolist()]
    return Contents(replace(part, skipped=tuple(data.skipped)), splits)


def begun(wanted: Wanted, cache: Cache | None, instead: str | None, progress: Progress | None) -> Contents:
    """All of it as files that are decoded when they are first asked for, and then kept: in memory, or in the cache.

    Those of a compressed tar are decoded now, for it can only be read from its beginning; idx files are read whole.

    Args:
        wanted: what to read.
        cache: where decoded images are looked for, and kept.
        instead: what becomes of the place of an unreadable file, for the warning that names it; None for no warning, as
            there is none of the files of a compressed tar, which are known at once.
        progress: called with (files done, files in all) after each file of a compressed tar, and while images that are
            kept of the source as it was, or of another one, are copied.
    Raises:
        UserError: if there is no image, or, of a compressed tar, too many files that cannot be read.
    """
    if wanted.path.is_dir() and (files := idx.find(wanted.path)):
        return _read_idx(wanted.source, files, wanted.size)
    listing, about, store = (*_listed(wanted), None) if cache is None else _cached(wanted, cache, progress)
    count = len(listing.entries)
    found = Files(listing, wanted.max_skipped, None if listing.forwards_only else instead)
    images = Decoded(found, store or InMemory(count, wanted.size), torch.arange(count), about["order"])
    if listing.forwards_only:
        images.readable(progress)
    return _contents(wanted, images, about, listing.skipped)


def undecoded(wanted: Wanted, listing: Listing) -> Contents:
    """All of it as files that are decoded each time that they are asked for.

    Raises:
        UserError: if there is no image.
    """
    chosen, about = _chosen(wanted, listing)
    files = Files(chosen, wanted.max_skipped, WHITE)
    images = Undecoded(files, torch.arange(len(chosen.entries)), wanted.size)
    return _contents(wanted, images, about, chosen.skipped)


def _cached(wanted: Wanted, cache: Cache, progress: Progress | None) -> tuple[Listing, dict[str, Any], Kept | None]:
    """The files, what is known of them, and where decoded ones are kept, if they can be.

    Where the cache knows the files, they are not listed: the source is opened when one of them has to be read.
    """
    try:
        now = stamp(wanted.path)
    except OSError as error:
        raise UserError(f"cannot read {wanted.source!r}: {one_line(error)}") from error
    kept = _find(wanted, cache, now)
    if kept is None:
        with cache.alone(_place(wanted, cache, everything=True)):
            kept = _find(wanted, cache, now)  # another process was quicker
            if kept is None:
                listing, about = _listed(wanted)
                place = _place(wanted, cache, everything=about["complete"] or not wanted.in_split_only)
                entries = Entries.of(listing.entries)
                return listing, about, cache.create(place, now, about, entries, wanted.size, progress)
    about = kept.about
    later = _Later(wanted, about["names"])
    skipped = [Skipped(*item) for item in about["skipped"]]
    entries = Entries(about["names"], about["sizes"], later.read)
    return Listing(entries, skipped, later.close, about["forwards_only"]), about, kept


class _Later:
    """The files of a source whose names are known, which is opened when the first of them is read."""

    def __init__(self, wanted: Wanted, names: Sequence[str]) -> None:
        self._wanted, self._names = wanted, names
        self._opening = threading.Lock()
        self._listing: Listing | None = None

    def read(self, position: int) -> bytes:
        with self._opening:
            if self._listing is None:
                listing, about = _listed(self._wanted)
                if about["names"] != self._names:
                    listing.close()
                    raise UserError(f"{self._wanted.source!r} has changed while it was read: start anew")
                self._listing = listing
        return self._listing.entries[position].read()

    def close(self) -> None:
        if self._listing is not None:
            self._listing.close()


def _place(wanted: Wanted, cache: Cache, *, everything: bool) -> Path:
    return cache.place(wanted.path, wanted.size, "all" if everything else "in splits")


def _find(wanted: Wanted, cache: Cache, now: str) -> Kept | None:
    """From the cache. All images of a source serve for those in its splits where these are all."""

    def fits(about: dict[str, Any]) -> bool:
        return bool(about["complete"]) or everything != wanted.in_split_only

    for everything in (True, False) if wanted.in_split_only else (True,):
        kept = cache.find(_place(wanted, cache, everything=everything), now, fits)
        if kept is not None:
            return kept
    return None


def _read_idx(source: str, files: dict[str, Path], size: int) -> Contents:
    parts = {split: idx.read(path, size) for split, path in files.items()}
    images = torch.cat([pixels for pixels, _ in parts.values()])
    known = [labels for _, labels in parts.values() if labels is not None]
    labels = torch.cat(known) if len(known) == len(parts) else None
    classes = () if labels is None else tuple(str(i) for i in range(int(labels.max()) + 1))
    names = tuple(f"{files[split].name}/{i:05}" for split, (pixels, _) in parts.items() for i in range(len(pixels)))
    splits = [split for split, (pixels, _) in parts.items() for _ in range(len(pixels))]
    data = ImageSet(images, labels, classes, names, source)
    return Contents(data, splits if len(parts) > 1 else None)


def _listed(wanted: Wanted) -> tuple[Listing, dict[str, Any]]:
    """The files that are wanted, and what is known of them."""
    listing = list_images(wanted.path)
    try:
        return _chosen(wanted, listing)
    except UserError:
        listing.close()
        raise


def _chosen(wanted: Wanted, listing: Listing) -> tuple[Listing, dict[str, Any]]:
    """Those files of ``listing`` that are wanted, by name, and what is known of them, in plain values.

    Raises:
        UserError: if there is none.
    """
    entries = Entries.of(listing.entries)
    names = entries.names
    if not names:
        raise no_image(wanted.source, listing.skipped)
    layout = arrange(names)
    positions = [i for i, split in enumerate(layout.splits) if split or not wanted.in_split_only]
    positions.sort(key=names.__getitem__)
    chosen = entries.subset(positions)
    labels = [layout.labels[i] for i in positions]
    labelled = bool(layout.classes) and min(labels, default=-1) >= 0
    about = {
        "names": list(chosen.names),
        "sizes": list(chosen.sizes),
        "order": None if positions == sorted(positions) else positions,
        "labels": labels if labelled else None,
        "classes": list(layout.classes) if labelled else [],
        "splits": [layout.splits[i] for i in positions] if layout.given else None,
        "skipped": [(item.name, item.reason) for item in listing.skipped],
        "complete": all(layout.splits),
        "forwards_only": listing.forwards_only,
    }
    return replace(listing, entries=chosen), about


def _contents(wanted: Wanted, images: FileRows, about: dict[str, Any], skipped: Sequence[Skipped]) -> Contents:
    data = ImageSet(
        images=images,
        labels=None if about["labels"] is None else torch.tensor(about["labels"]),
        classes=tuple(about["classes"]),
        names=tuple(about["names"]),
        source=wanted.source,
        skipped=skipped,
    )
    return Contents(data, about["splits"])
