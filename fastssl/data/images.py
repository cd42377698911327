"""Images in memory: any readable source as one uint8 tensor, with labels where its folders name classes."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from fastssl.data import idx
from fastssl.data.decode import SUFFIXES
from fastssl.data.layout import arrange
from fastssl.data.reading import Progress, decode_all, quote
from fastssl.data.sources import Listing, Skipped, list_images
from fastssl.errors import UserError, unknown

__all__ = ["EMBEDDED", "MAX_SKIPPED", "ImageSet", "Progress", "Skipped", "Splits", "files_of", "load", "load_all"]

# Data sets that come with the package, by name.
EMBEDDED = {"clipart": Path(__file__).with_name("clipart.zip")}

# The share of unreadable files above which a source is refused; a single one is always allowed.
MAX_SKIPPED = 0.1

# The share of each class that is held out where the source has no split of its own.
TEST_SHARE = 0.2


@dataclass(frozen=True)
class ImageSet:
    """Images of one size, in the order of their names.

    Args:
        images: (N, 3, S, S) uint8, RGB, on the CPU.
        labels: (N,) int64, indices into ``classes``; None if the source has no class folders.
        classes: the names of the classes, sorted; empty without labels.
        names: the path of each image inside its source.
        source: what the user gave.
        skipped: the files of the whole source that could not be used.
    """

    images: Tensor
    labels: Tensor | None
    classes: tuple[str, ...]
    names: tuple[str, ...]
    source: str
    skipped: tuple[Skipped, ...] = ()

    def __len__(self) -> int:
        return len(self.names)

    def subset(self, index: Tensor) -> ImageSet:
        """The images at the positions ``index`` (int64), in its order."""
        return replace(
            self,
            images=self.images[index],
            labels=None if self.labels is None else self.labels[index],
            names=tuple(self.names[i] for i in index.tolist()),
        )


@dataclass(frozen=True)
class Splits:
    """What to train on and, where there are labels or the source says so, what to test on."""

    train: ImageSet
    test: ImageSet | None


def load(
    source: str,
    *,
    size: int,
    seed: int = 0,
    max_skipped: float = MAX_SKIPPED,
    progress: Progress | None = None,
) -> Splits:
    """Reads ``source`` and splits it: as its folders say, else a fifth of each class is the test set.

    Args:
        source: an embedded set (``EMBEDDED``), or the path of an image folder, a zip or tar of images, or a folder of
            idx files. ``layout.arrange`` says what folders mean.
        size: images are resized (short side, antialiased) and centre-cropped to ``size`` x ``size``.
        seed: of the split, where it is drawn.
        max_skipped: the share of unreadable files, in [0, 1], above which the source is refused; a single unreadable
            file is always allowed.
        progress: called with (files done, files in all) after each file; not for idx files, which are read whole.

    Raises:
        UserError: if the source does not exist, holds no readable image, or too many files that cannot be read.
    """
    everything, splits = _read(source, size, max_skipped, progress, in_split_only=True)
    if splits is not None:
        train, test = (
            torch.tensor([i for i, split in enumerate(splits) if split == name]) for name in ("train", "test")
        )
    elif everything.labels is not None:
        train, test = stratified_split(everything.labels, TEST_SHARE, seed)
    else:
        return Splits(everything, None)
    if not len(train):
        raise UserError(f"no readable training image in {source!r}: put some into its train folder")
    return Splits(everything.subset(train), everything.subset(test) if len(test) else None)


def load_all(source: str, *, size: int, max_skipped: float = MAX_SKIPPED, progress: Progress | None = None) -> ImageSet:
    """Every image of ``source``, whatever split it is in. Arguments and errors are those of ``load``."""
    return _read(source, size, max_skipped, progress, in_split_only=False)[0]


def files_of(data: ImageSet) -> Listing:
    """The files that ``data`` was read from, in its order, for an engine that reads them itself; to be closed.

    Raises:
        UserError: if they cannot be read one by one in any order, as idx files and compressed tars, or some are gone.
    """
    path = _locate(data.source)
    only_native = "the engine 'dali' reads single files in any order: take the engine 'native'"
    if path.is_dir() and idx.find(path):
        raise UserError(f"{data.source!r} has all its images in idx files, and {only_native}")
    listing = list_images(path)
    if listing.forwards_only:
        listing.close()
        raise UserError(f"{data.source!r} is a compressed tar, and {only_native}, or unpack it")
    by_name = {entry.name: entry for entry in listing.entries}
    if gone := next((name for name in data.names if name not in by_name), None):
        listing.close()
        raise UserError(f"{gone!r} in {data.source!r} was there and is gone: start anew")
    return replace(listing, entries=[by_name[name] for name in data.names], skipped=[])


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


def _read(
    source: str, size: int, max_skipped: float, progress: Progress | None, *, in_split_only: bool
) -> tuple[ImageSet, Sequence[str] | None]:
    """All images of a source and, if it gives one, the split ("train", "test" or "") that each is in."""
    if size < 1:
        raise UserError(f"the image size must be at least 1; got {size}")
    if not 0 <= max_skipped <= 1:
        raise UserError(f"max_skipped is a share of the files, from 0 to 1; got {max_skipped}")
    path = _locate(source)
    if path.is_dir() and (idx_files := idx.find(path)):
        return _read_idx(source, idx_files, size)
    return _read_files(source, path, size, max_skipped, progress, in_split_only=in_split_only)


def _locate(source: str) -> Path:
    path = EMBEDDED.get(source) or Path(source)
    with suppress(OSError):  # a path that cannot be looked up, say for its length, is as good as missing
        if source and path.exists():
            return path
    if source and path.name == source and not path.suffix:
        raise UserError(f"{unknown('data set', source, EMBEDDED)}, or give the path of a folder, zip or tar of images")
    raise UserError(
        f"no file or folder {source!r}: check the path, or give {' or '.join(map(repr, EMBEDDED))} for embedded images"
    )


def _read_idx(source: str, files: dict[str, Path], size: int) -> tuple[ImageSet, Sequence[str] | None]:
    parts = {split: idx.read(path, size) for split, path in files.items()}
    images = torch.cat([pixels for pixels, _ in parts.values()])
    known = [labels for _, labels in parts.values() if labels is not None]
    labels = torch.cat(known) if len(known) == len(parts) else None
    classes = () if labels is None else tuple(str(i) for i in range(int(labels.max()) + 1))
    names = tuple(f"{files[split].name}/{i:05}" for split, (pixels, _) in parts.items() for i in range(len(pixels)))
    splits = [split for split, (pixels, _) in parts.items() for _ in range(len(pixels))]
    return ImageSet(images, labels, classes, names, source), splits if len(parts) > 1 else None


def _read_files(
    source: str, path: Path, size: int, max_skipped: float, progress: Progress | None, *, in_split_only: bool
) -> tuple[ImageSet, Sequence[str] | None]:
    with closing(list_images(path)) as listing:
        names = [entry.name for entry in listing.entries]
        if not names:
            reasons = quote(listing.skipped) or f"no file ends in {', '.join(sorted(SUFFIXES))}"
            raise UserError(f"no image in {source!r} ({reasons}): give a folder, zip or tar of images")
        layout = arrange(names)
        wanted = [i for i, split in enumerate(layout.splits) if split or not in_split_only]
        allowed = max(1, int(max_skipped * len(wanted)))
        images, kept, skipped = decode_all([listing.entries[i] for i in wanted], size, allowed, progress)
        skipped = listing.skipped + skipped
    if not kept:
        raise UserError(f"no readable image in {source!r} ({quote(skipped)}): give whole image files")

    by_name = sorted(range(len(kept)), key=lambda i: names[wanted[kept[i]]])
    if by_name != list(range(len(kept))):
        images = images[by_name]
    chosen = [wanted[kept[i]] for i in by_name]
    labels = torch.tensor([layout.labels[i] for i in chosen])
    labelled = bool(layout.classes) and bool((labels >= 0).all())
    data = ImageSet(
        images=images,
        labels=labels if labelled else None,
        classes=layout.classes if labelled else (),
        names=tuple(names[i] for i in chosen),
        source=source,
        skipped=tuple(skipped),
    )
    return data, [layout.splits[i] for i in chosen] if layout.given else None
