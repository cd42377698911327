"""A set of images of one size, with their names and, where folders name classes, labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from fastssl.data.reading import Progress, counted
from fastssl.data.rows import FileRows, Rows
from fastssl.data.sources import Skipped
from fastssl.errors import UserError


@dataclass(frozen=True)
class ImageSet:
    """Images of one size, in the order of their names.

    Args:
        images: (N, 3, S, S) uint8, RGB, on the CPU: a tensor, or what is indexed like one and brings into memory only
            what is asked for.
        labels: (N,) int64, indices into ``classes``; None if the source has no class folders.
        classes: the names of the classes, sorted; empty without labels.
        names: the path of each image inside its source.
        source: what the user gave.
        skipped: the files of the whole source that could not be used; where images are decoded as they are asked for,
            those met so far, and their images are in the set.
    """

    images: Tensor | Rows
    labels: Tensor | None
    classes: tuple[str, ...]
    names: Sequence[str]
    source: str
    skipped: Sequence[Skipped] = ()

    def __len__(self) -> int:
        return len(self.names)

    def __repr__(self) -> str:
        height, width = self.images.shape[-2:]
        classes = counted(len(self.classes), "class", self.classes) if self.classes else "no labels"
        many = counted(len(self), "image")
        return f"ImageSet({self.source!r}: {many} of {width} x {height}, {classes}, {len(self.skipped)} skipped)"

    def subset(self, index: Tensor) -> ImageSet:
        """The images at the positions ``index`` (int64), in its order."""
        return replace(
            self,
            images=self.images.subset(index) if isinstance(self.images, Rows) else self.images[index],
            labels=None if self.labels is None else self.labels[index],
            names=tuple(self.names[i] for i in index.tolist()),
        )

    def readable(self, progress: Progress | None = None) -> ImageSet:
        """Those whose files can be read, which all are tried for that were not yet.

        Args:
            progress: called with (files done, files in all) after each file that is tried.
        Raises:
            UserError: if more files cannot be read than are allowed.
        """
        if not isinstance(self.images, FileRows):
            return self
        kept = self.images.readable(progress)
        return self if len(kept) == len(self) else self.subset(kept)


@dataclass(frozen=True)
class Splits:
    """What to train on and, where there are labels or the source says so, what to test on."""

    train: ImageSet
    test: ImageSet | None

    def readable(self, progress: Progress | None = None) -> Splits:
        """Both without the images whose files cannot be read, as scores and pictures take them; without the test set,
        if that leaves none of it.

        Args:
            progress: as of `ImageSet.readable`, for one after the other.
        Raises:
            UserError: if more files cannot be read than are allowed, or none of those to train on can be.
        """
        train = self.train.readable(progress)
        if not len(train):
            raise UserError(f"none of the images of {train.source!r} to train on can be read: repair its files")
        test = None if self.test is None else self.test.readable(progress)
        return Splits(train, test if test is not None and len(test) else None)
