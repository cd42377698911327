"""Clips of videos: a data set of them, and batches of views for training."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor
from typing_extensions import Unpack

from fastssl.data import video
from fastssl.data.ahead import AheadLoader, Settings, room
from fastssl.data.decode import UnreadableError
from fastssl.data.files import MAX_SKIPPED
from fastssl.data.opening import open_all, refuse_too_many
from fastssl.data.plans import ViewPlan
from fastssl.data.reading import Progress, counted, quote
from fastssl.data.sources import Entry, Listing, Skipped, existing, find_files, list_images
from fastssl.data.video import Video
from fastssl.data.views import augmented, draw
from fastssl.errors import UserError
from fastssl.ops import ViewParams
from fastssl.ops._native import on_one_thread

_NO_VIDEO = f"no file ends in {', '.join(sorted(video.SUFFIXES))}, and no folder has images"


@dataclass(frozen=True)
class ClipSet:
    """Clips of equal length, in the order of their videos and, within one, of time.

    Args:
        videos: that the clips are of; ``videos[0].read(range(100))`` reads any frames of one.
        clips: of each clip the position of its video and those of its frames.
        size: of the frames, see `fastssl.data.video.Video.read`.
        skipped: the files that cannot be read, and the videos too short for a clip; loaders add the clips that they
            meet which cannot be.
        listing: that the frames of an archive are read from; closed with the set.
    """

    videos: tuple[Video, ...]
    clips: tuple[tuple[int, tuple[int, ...]], ...]
    size: int | None = None
    skipped: list[Skipped] = field(default_factory=list)
    listing: Listing = field(default_factory=Listing, repr=False)

    def __len__(self) -> int:
        return len(self.clips)

    def __repr__(self) -> str:
        frames = len(self.clips[0][1]) if self.clips else 0
        clips, videos = counted(len(self), "clip"), counted(len(self.videos), "video")
        return f"ClipSet({clips} of {counted(frames, 'frame')}, {videos}, {len(self.skipped)} skipped)"

    def __getitem__(self, position: int) -> Tensor:
        """One clip, (T, 3, H, W) uint8, RGB.

        Raises:
            UnreadableError: saying why, if it cannot be had.
        """
        return self.read(position).movedim(3, 1).contiguous()

    def read(self, position: int) -> Tensor:
        """One clip as decoders write it, (T, H, W, 3) uint8, RGB.

        Raises:
            UnreadableError: saying why, if it cannot be had.
        """
        found, frames = self.clips[position]
        return self.videos[found].read(frames, self.size)

    def name(self, position: int) -> str:
        """The video of a clip and its first frame."""
        found, frames = self.clips[position]
        return f"{self.videos[found].name}, from frame {frames[0]}"

    def identity(self) -> bytes:
        """What is the same as long as the clips are of the same frames of the same videos."""
        return repr([(self.videos[found].name, frames) for found, frames in self.clips]).encode()

    def close(self) -> None:
        """Closes the archive, if the frames are in one."""
        self.listing.close()


def list_clips(
    source: str | Path,
    frames: int,
    *,
    stride: int = 1,
    fps: float | None = None,
    every: int | None = None,
    size: int | None = None,
    max_skipped: float = MAX_SKIPPED,
    progress: Progress | None = None,
) -> ClipSet:
    """Finds the videos in ``source`` and lists their clips.

    Video files are read through once, without decoding them, to find how many frames they have and when each is shown.

    Args:
        source: a video file; a folder of them, at any depth; or, where it has none, a folder, zip or tar whose folders
            of images are a video each, as DAVIS has them.
        frames: of a clip.
        stride: distance between the frames of a clip, in frames of the video.
        fps: frames of a clip a second, in place of a stride: of a video with another rate, also a varying one, those
            that are shown at these times. Only for video files.
        every: distance between the beginnings of two clips, in frames of a clip; by default ``frames``, so that clips
            follow each other and do not overlap.
        size: the short side of the frames is resized to this, antialiased, and the centre cut out, so that all clips
            have one shape; by default frames stay as they are.
        max_skipped: the share of video files that cannot be read, in [0, 1], above which the source is refused; a
            single one is always allowed.
        progress: called with (files done, files in all) after each video file.
    Raises:
        UserError: if there is no video long enough for a clip, too many files cannot be read, or a number is out of
            range.
    """
    source, every = str(source), frames if every is None else every
    for name, value in (("frames", frames), ("stride", stride), ("every", every), ("size", size)):
        if value is not None and value < 1:
            raise UserError(f"{name} must be at least 1; got {value}")
    if fps is not None and not 0 < fps < float("inf"):
        raise UserError(f"fps must be above 0 and finite; got {fps}")
    if fps is not None and stride != 1:
        raise UserError(f"give a stride or fps, not both; got {stride} and {fps}")
    videos, skipped, listing = _videos(source, max_skipped, progress)
    clips: list[tuple[int, tuple[int, ...]]] = []
    for i, found in enumerate(videos):
        try:
            shown = found.spaced(stride, fps)
        except UnreadableError as error:
            skipped.append(Skipped(found.name, str(error)))
            continue
        starts = range(0, len(shown) - frames + 1, every)
        clips += [(i, tuple(shown[start : start + frames])) for start in starts]
        if not starts:
            skipped.append(Skipped(found.name, f"too short: {len(shown)} frames of the {frames} of a clip"))
    if not clips:
        listing.close()
        advice = "longer videos or fewer frames" if videos else "whole videos, or folders of their frames"
        raise UserError(f"no clip of {frames} frames in {source!r} ({quote(skipped) or _NO_VIDEO}): give {advice}")
    return ClipSet(tuple(videos), tuple(clips), size, skipped, listing)


class ClipLoader(AheadLoader):
    """Batches of views of clips; the contract is that of `fastssl.data.loader.Batches`, with a dimension more for time.

    The order and what is drawn depends on (seed, epoch, step, rank and world) alone: a run resumed in mid-epoch sees
    what an uninterrupted one sees, to the bit, and no two processes see the same clip in an epoch. A clip that cannot
    be read is counted, named in ``skipped``, and its place taken by the next readable one of its batch.

    Args:
        clips: as ``list_clips`` gives them; left open when the loader is closed.
        plan: how views are made of each frame.
        batch_size: clips a step and process; what is left of an epoch and fills no batch is left out.
        seed: 0 or more.
        alike: whether a view has the same parameters in all frames of a clip, so that it moves as the clip does; else
            each frame has its own.
        settings: see `fastssl.data.ahead.Settings`; a thread makes a clip at a time.

    Raises:
        UserError: if a number is out of range.
    """

    what = "clips"

    def __init__(
        self,
        clips: ClipSet,
        plan: ViewPlan,
        batch_size: int,
        seed: int,
        *,
        alike: bool = True,
        **settings: Unpack[Settings],
    ) -> None:
        # clips are no bytes: the entries are how many there are and what each is called
        named = [Entry(clips.name(position), bytes) for position in range(len(clips))]
        super().__init__(Listing(named, clips.skipped), batch_size, seed, **settings)
        self.clips, self.plan, self.alike = clips, plan, alike

    def make(self, workers: ThreadPoolExecutor, epoch: int, step: int, chosen: list[int]) -> list[Tensor]:
        """``plan.total`` views (batch_size, T, 3, size, size) float32, normalised by the plan's mean and std."""
        found = list(workers.map(self._open, chosen))
        clips = self._files.filled(found)
        drawn = [clip[:1] if self.alike else clip for clip in clips]
        shapes = torch.tensor([frame.shape[:2] for frames in drawn for frame in frames])
        params = draw(self.plan, shapes, self.schedule.generator(epoch, step))
        views = [room(len(clips), len(clips[0]), 3, size, size) for size in self.plan.sizes]

        def make_clip(i: int) -> None:
            count, frames = len(drawn[i]), clips[i].movedim(3, 1)
            own = ViewParams(
                *(x[:, i * count : (i + 1) * count].repeat_interleave(len(frames) // count, 1) for x in params)
            )
            with on_one_thread():
                made = augmented(frames, own, self.plan)
            for view, some in zip(views, made, strict=True):
                view[i] = some

        list(workers.map(make_clip, range(len(clips))))
        return views

    def _open(self, position: int) -> Tensor | None:
        return self._files.read(position, lambda _: self.clips.read(position))


def _videos(
    source: str, max_skipped: float, progress: Progress | None
) -> tuple[Sequence[Video], list[Skipped], Listing]:
    path = existing(source, "give a folder of videos, or of folders of frames")
    files, skipped = find_files(path, video.SUFFIXES) if path.is_dir() else ([], [])
    if path.suffix.lower() in video.SUFFIXES and not path.is_dir():
        files = [(path.name, path)]
    if not files:
        return _folders(source, path)
    video.require()
    found = open_all(files, video.open_file, skipped, progress)
    refuse_too_many(skipped, len(files), max_skipped, "unreadable videos", "remove or repair them")
    return [film for _, film in found], skipped, Listing()


def _folders(source: str, path: Path) -> tuple[Sequence[Video], list[Skipped], Listing]:
    """The folders of frames in a folder or archive, without those whose images cannot be frames of one video."""
    listing = list_images(path)
    if listing.forwards_only:
        listing.close()
        raise UserError(f"{source!r} is a compressed tar, of which frames can only be read in order: unpack it")
    found, skipped = [], list(listing.skipped)
    for folder in video.folders_of_frames(listing.entries):
        if folder.of_one_size():
            found.append(folder)
        else:
            skipped.append(Skipped(folder.name, "its images differ in size, so they are no frames of a video"))
    return found, skipped, listing
