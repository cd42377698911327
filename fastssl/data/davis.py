"""Videos with masks, in folders as DAVIS has them."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import torch
from torch import Tensor

from fastssl.data import video
from fastssl.data.decode import UnreadableError
from fastssl.data.masks import Mask, read_mask
from fastssl.data.reading import quote
from fastssl.data.sources import Skipped, list_images
from fastssl.data.video import FrameFolder
from fastssl.errors import UserError

FRAMES, MASKS = "JPEGImages", "Annotations"
_USUAL = "480p"  # of the official folders' resolutions, the one that is evaluated


@dataclass(frozen=True)
class Sequence:
    """A video and the masks of its frames.

    Args:
        name: of its folder.
        video: its frames.
        masks: the file of each frame's mask; a frame that has none is tracked, and not scored.
    """

    name: str
    video: FrameFolder
    masks: tuple[Path | None, ...]

    def first(self) -> Mask:
        """That of the first frame. Raises as `truth` does."""
        assert self.masks[0] is not None, "who has no first mask is not listed"
        return read_mask(self.masks[0])

    def truth(self) -> tuple[list[int], Tensor]:
        """The positions of the frames with a mask, and these, (M, H, W) uint8.

        Raises:
            UnreadableError: saying which cannot be read, and why.
        """
        found = [(frame, path) for frame, path in enumerate(self.masks) if path is not None]
        masks = []
        for _, path in found:
            try:
                masks.append(read_mask(path).values)
            except UnreadableError as error:
                raise UnreadableError(f"its mask {path.name}: {error}") from error
        if len({mask.shape for mask in masks}) > 1:
            raise UnreadableError("its masks differ in size")
        return [frame for frame, _ in found], torch.stack(masks)


@dataclass(frozen=True)
class Davis:
    """Sequences in the order of their names, and what could not be used."""

    sequences: tuple[Sequence, ...]
    skipped: tuple[Skipped, ...] = ()


def is_davis(source: str) -> bool:
    """Whether ``source`` is a folder with frames and masks beside each other."""
    return all((Path(source) / name).is_dir() for name in (FRAMES, MASKS))


def open_davis(source: str, only: Collection[str] | None = None) -> Davis:
    """The sequences of a folder with ``JPEGImages/<name>/*.jpg`` and ``Annotations/<name>/*.png``.

    The official folders have a level more, for the resolution: 480p is taken where there are several. A mask is called
    as its frame is.

    Args:
        source: the folder.
        only: names of the sequences to take; None takes all.
    Raises:
        UserError: if there is no such folder, none of its sequences has a mask for its first frame, or one of ``only``
            is missing.
    """
    if not is_davis(source):
        raise UserError(f"{source!r} has no folders {FRAMES} and {MASKS} beside each other, as DAVIS has them")
    listing = list_images(Path(source) / FRAMES)
    folders = video.folders_of_frames(listing.entries)
    if any(folder.name.startswith(f"{_USUAL}/") for folder in folders):
        folders = [folder for folder in folders if folder.name.startswith(f"{_USUAL}/")]
    if only is not None:
        names = {PurePosixPath(folder.name).name for folder in folders}
        if missing := sorted(set(only) - names):
            raise UserError(f"{source!r} has no sequence {missing[0]!r}: it has {', '.join(sorted(names))}")
        folders = [folder for folder in folders if PurePosixPath(folder.name).name in only]
    found, skipped = [], list(listing.skipped)
    for folder in folders:
        masks = tuple(_mask_of(Path(source), folder.name, entry.name) for entry in folder.entries)
        if masks[0] is None:
            skipped.append(Skipped(folder.name, "its first frame has no mask"))
        else:
            found.append(Sequence(PurePosixPath(folder.name).name, folder, masks))
    if not found:
        raise UserError(f"no sequence with a mask for its first frame in {source!r} ({quote(skipped)})")
    return Davis(tuple(found), tuple(skipped))


def _mask_of(root: Path, folder: str, frame: str) -> Path | None:
    path = root / MASKS / folder / f"{PurePosixPath(frame).stem}.png"
    return path if path.is_file() else None
