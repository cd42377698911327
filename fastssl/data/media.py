"""Data that is not images: which parts of videos and recordings a run is trained on, and what a folder holds."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from fastssl.data import audio, decode, video
from fastssl.data.audio import Recordings, list_recordings
from fastssl.data.clips import ClipSet, list_clips
from fastssl.data.files import NOT_SHOWN, Files
from fastssl.data.imageset import ImageSet, Splits
from fastssl.data.reading import Progress, quote
from fastssl.data.sources import Entry, Listing, find_files
from fastssl.errors import UserError

Modality = Literal["image", "video", "audio"]
# What a run is trained on, by the modality of its method.
Data = Splits | ClipSet | Recordings

PLURALS: dict[Modality, str] = {"image": "images", "video": "videos", "audio": "recordings"}
_SUFFIXES: dict[Modality, frozenset[str]] = {"image": decode.SUFFIXES, "video": video.SUFFIXES, "audio": audio.SUFFIXES}


@dataclass(frozen=True)
class MediaConfig:
    """Which parts of videos and recordings are trained on; runs on images have no use for it.

    Attributes:
        frames: of a clip, for methods that take videos.
        stride: distance between the frames of a clip, in frames of the video.
        fps: frames of a clip a second, in place of a stride; only for video files.
        every: distance between the beginnings of two clips, in frames of a clip; null is ``frames``, so that clips
            follow each other.
        samples: of a window, for methods that take recordings; shorter ones end in silence.
        rate: samples a second; null is that of most files. Others are left out, for nothing is resampled.
    """

    frames: int = 8
    stride: int = 1
    fps: float | None = None
    every: int | None = None
    samples: int = 20480
    rate: int | None = None

    def __post_init__(self) -> None:
        for name in ("frames", "stride", "every", "samples", "rate"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"media.{name} must be 1 or more; got {value}")


def open_media(
    source: str, modality: Modality, config: MediaConfig, *, max_skipped: float, progress: Progress | None = None
) -> ClipSet | Recordings:
    """The clips, or the recordings, in ``source``; nothing of them is in memory.

    Raises:
        UserError: as `fastssl.data.clips.list_clips` and `fastssl.data.audio.list_recordings` do.
    """
    if modality == "audio":
        return list_recordings(source, rate=config.rate, max_skipped=max_skipped, progress=progress)
    return list_clips(
        source,
        config.frames,
        stride=config.stride,
        fps=config.fps,
        every=config.every,
        max_skipped=max_skipped,
        progress=progress,
    )


def held(source: str) -> list[Modality]:
    """The kinds of files that a folder, or a single file, is of, by their suffixes."""
    path = Path(source)
    with suppress(OSError):  # a path that cannot be looked up, say for its length, holds nothing
        if path.is_dir():
            return [kind for kind, suffixes in _SUFFIXES.items() if find_files(path, suffixes)[0]]
        if path.is_file():
            return [kind for kind, suffixes in _SUFFIXES.items() if path.suffix.lower() in suffixes]
    return []


def some_frames(clips: ClipSet, source: str, *, size: int, count: int, seed: int) -> ImageSet:
    """The first frames of ``count`` clips, drawn by ``seed``, as images without labels: to look at.

    Args:
        clips: of which all are taken, where there are no more.
        source: that they are of, for the report.
        size: the short side is resized to it, and the centre cut out.
    Raises:
        UserError: if none of them can be read.
    """
    order = torch.randperm(len(clips), generator=torch.Generator().manual_seed(seed))
    chosen = order[:count].sort().values.tolist()
    names = [clips.name(position) for position in chosen]
    # frames are no bytes of files: the entries are how many there are and what each is called
    files = Files(Listing([Entry(name, bytes) for name in names], clips.skipped), 1.0, NOT_SHOWN)

    def first(position: int, _: bytes) -> Tensor:
        found, frames = clips.clips[position]
        return clips.videos[found].read(frames[:1], size)[0].movedim(2, 0)

    pixels = [files.read(i, partial(first, position)) for i, position in enumerate(chosen)]
    kept = [(image, name) for image, name in zip(pixels, names, strict=True) if image is not None]
    if not kept:
        raise UserError(f"no readable frame among {len(chosen)} of {source!r} ({quote(clips.skipped)})")
    shown, named = zip(*kept, strict=True)
    return ImageSet(torch.stack(shown), None, (), named, source, clips.skipped)
