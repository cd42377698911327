"""Video: files and folders of frames, as clips of frames that a training step takes, and whole for tracking.

Files are read by PyAV (FFmpeg). A frame is known by the time at which it is shown, so that the one asked for is the one
that comes, whether decoding begins at the start of the file or at a keyframe, and at any rate, also a varying one.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fastssl.data.decode import MAX_PIXELS, UnreadableError, centre, decode, decode_full, sides
from fastssl.data.sources import Entry, existing, list_images, one_line
from fastssl.errors import UserError, needed

SUFFIXES = frozenset((".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ogv", ".wmv", ".flv", ".3gp"))

# What FFmpeg may take a file for: no lists of other files, and nothing from the network.
_OPTIONS = {"format_whitelist": "mov,matroska,avi,mpeg,ogg,asf,flv", "protocol_whitelist": "file"}

# Frames that `frames_of` decodes together: a file is entered at the keyframe before them.
_AT_ONCE = 32

# Moments for each frame, above which its times are taken for damaged: of a slide shown for ten minutes, at 30 a second.
_MOST_MOMENTS = 18_000


def require() -> Any:
    """The module ``av``.

    Raises:
        UserError: saying what to install, where it is missing.
    """
    return needed("av", "video files need PyAV", "pip install 'fastssl[video]'")


class Video(Protocol):
    """Frames in the order in which they are shown, any of which can be had."""

    @property
    def name(self) -> str:
        """Its path inside the source."""

    def __len__(self) -> int:
        """How many frames it has."""

    def spaced(self, stride: int, fps: float | None) -> list[int]:
        """Every ``stride``-th frame or, given ``fps``, what is shown at ``fps`` moments a second from the first on.

        Raises:
            UnreadableError: if its times cannot be.
            UserError: for ``fps``, if it has none.
        """

    def read(self, frames: Sequence[int], size: int | None = None) -> Tensor:
        """The frames at ``frames``, which must not descend.

        Args:
            frames: positions in [0, len).
            size: the short side is resized to this, antialiased, and the centre cut out; by default frames stay as
                they are.
        Returns:
            (T, H, W, 3) uint8, RGB.
        Raises:
            UnreadableError: saying why, if they cannot be had.
        """


@dataclass(frozen=True)
class FrameFolder:
    """A video as a folder of images, one a frame, as DAVIS has it.

    Args:
        name: of the folder.
        entries: the frames, in their order.
    """

    name: str
    entries: tuple[Entry, ...]

    def __repr__(self) -> str:
        return f"FrameFolder({self.name!r}, {len(self):,} frames)"

    def __len__(self) -> int:
        return len(self.entries)

    def of_one_size(self) -> bool:
        """Whether the first and the last image are, as their headers tell; one that cannot be read differs from none.

        Frames of a video are, and photographs in a folder hardly ever.
        """
        found = set()
        for entry in (self.entries[0], self.entries[-1]):
            with suppress(UnreadableError):
                found.add(sides(entry.read()))
        return len(found) < 2

    def spaced(self, stride: int, fps: float | None) -> list[int]:
        if fps is not None:
            raise UserError(f"the frames in {self.name!r} have no times to take {fps} a second of: give a stride")
        return list(range(0, len(self), stride))

    def read(self, frames: Sequence[int], size: int | None = None) -> Tensor:
        found = []
        for frame in frames:
            data = self.entries[frame].read()
            found.append(torch.tensor(decode_full(data) if size is None else decode(data, size)))
        if len({image.shape for image in found}) > 1:
            raise UnreadableError("its frames differ in size")
        return torch.stack(found)


@dataclass(frozen=True)
class VideoFile:
    """A video file and when its frames are shown.

    Args:
        name: of the file inside its source.
        path: of the file.
        times: of all frames, ascending, in units of ``unit``.
        keys: of those from which on all can be decoded.
        unit: in seconds.
        counted: whether the file has no proper times, so that its frames are counted from its start on.
    """

    name: str
    path: Path
    times: tuple[int, ...]
    keys: tuple[int, ...]
    unit: Fraction
    counted: bool = False

    def __repr__(self) -> str:
        return f"VideoFile({self.name!r}, {len(self):,} frames)"

    def __len__(self) -> int:
        return len(self.times)

    def spaced(self, stride: int, fps: float | None) -> list[int]:
        if fps is None:
            return list(range(0, len(self), stride))
        step = 1 / (Fraction(fps).limit_denominator(10**6) * self.unit)
        moments = int((self.times[-1] - self.times[0]) / step) + 1
        if moments > _MOST_MOMENTS * len(self):
            seconds = float((self.times[-1] - self.times[0]) * self.unit)
            raise UnreadableError(f"damaged: {len(self)} frames cannot be shown for {seconds:.0f} s")
        at = (self.times[0] + k * step.numerator // step.denominator for k in range(moments))
        return [bisect_right(self.times, moment) - 1 for moment in at]

    def read(self, frames: Sequence[int], size: int | None = None) -> Tensor:
        moments = [self.times[frame] for frame in frames]
        key = self.keys[bisect_right(self.keys, moments[0]) - 1]
        try:
            found = self._read(key, moments, size)
        except UnreadableError:
            if key == self.keys[0]:
                raise
            found = self._read(self.keys[0], moments, size)  # not every keyframe is what it is said to be
        if len({pixels.shape for pixels in found}) > 1:
            raise UnreadableError("its frames differ in size")
        return torch.from_numpy(np.stack(found))

    def _read(self, key: int, moments: Sequence[int], size: int | None) -> list[np.ndarray]:
        """What is shown at each of ``moments``, which do not descend, decoded from the keyframe of time ``key`` on."""
        found: list[np.ndarray] = []
        waiting = deque(moments)
        before = last = None
        for time, frame in self._decoded(key):
            while waiting and waiting[0] <= time:
                shown = frame if waiting.popleft() == time else before  # a packet need not become a frame of its own
                if shown is None:
                    raise UnreadableError(f"damaged: no frame before {self._seconds(time)}")
                found.append(found[-1] if shown is last else _pixels(shown, size))
                last = shown
            if not waiting:
                return found
            before = frame
        raise UnreadableError(f"cut short before {self._seconds(waiting[0])}")

    def _decoded(self, key: int) -> Iterator[tuple[int, Any]]:
        """The frames from the keyframe of time ``key`` on, in the order in which they are shown, and when they are."""
        last = key - 1
        with _opened(self.path) as (container, stream):
            packets = self._packets(container, stream, key)
            for number, frame in enumerate(frame for packet in packets for frame in packet.decode()):
                time = number if self.counted else frame.pts
                if time is None or key <= time <= last:
                    raise UnreadableError(f"damaged: no proper times after {self._seconds(last)}")
                if time < key:  # of those before, not all can be decoded
                    continue
                if frame.is_corrupt:
                    raise UnreadableError(f"damaged at {self._seconds(time)}")
                yield time, frame
                last = time

    def _packets(self, container: Any, stream: Any, key: int) -> Iterator[Any]:
        """Those from the keyframe of time ``key`` on, or from one before it."""
        if key == self.keys[0]:
            yield from container.demux(stream)
            return
        container.seek(key, stream=stream)
        for i, packet in enumerate(container.demux(stream)):
            if i == 0 and (not packet.is_keyframe or packet.pts is None or packet.pts > key):
                raise UnreadableError(f"seeking lands after {self._seconds(key)}")
            yield packet

    def _seconds(self, time: int) -> str:
        return f"{float((time - self.times[0]) * self.unit):.3f} s"


def open_file(name: str, path: Path) -> VideoFile:
    """The video file at ``path``, read through once, without decoding it, for the times of its frames.

    Raises:
        UnreadableError: saying why, if it is none, or damaged or cut short in a way that shows without decoding.
    """
    shown: list[int | None] = []
    keys: set[int] = set()
    packets = 0
    with _opened(path) as (container, stream):
        for packet in container.demux(stream):
            if not packet.size:  # the last, which only says that there are no more
                continue
            if packet.is_corrupt:
                raise UnreadableError("cut short or damaged")
            packets += 1
            if packet.is_keyframe and packet.pts is not None:
                keys.add(packet.pts)
            if not packet.is_discard:  # else decoded, but not shown
                shown.append(packet.pts)
        if packets < stream.frames:
            raise UnreadableError(f"cut short: {packets} of {stream.frames} frames are there")
        unit, rate = stream.time_base, stream.average_rate
        # an avi holds no times, and if frames are shown in another order than they lie in, times that ascend are wrong
        reordered = container.format.name == "avi" and stream.codec_context.has_b_frames
    known = {time for time in shown if time is not None}
    guessed = reordered and shown == sorted(known)
    if (len(known) < len(shown) or guessed) and rate:
        return VideoFile(name, path, tuple(range(len(shown))), (0,), 1 / Fraction(rate), counted=True)
    times = tuple(sorted(time for time in known if keys and time >= min(keys)))
    if not times or not unit:
        raise UnreadableError("no frame in it")
    return VideoFile(name, path, times, tuple(sorted(keys)), unit)


def folders_of_frames(entries: Sequence[Entry]) -> list[FrameFolder]:
    """One video for each folder of images, its frames in the order of their names, 9 before 10."""
    found: dict[str, list[Entry]] = {}
    for entry in entries:
        found.setdefault(str(PurePosixPath(entry.name).parent), []).append(entry)
    return [
        FrameFolder(name, tuple(sorted(frames, key=lambda entry: _natural(entry.name))))
        for name, frames in sorted(found.items(), key=lambda folder: _natural(folder[0]))
    ]


def open_one(source: str) -> Video:
    """A single video: a video file, or a folder of its frames.

    Raises:
        UserError: saying why, if it is none, or holds several.
    """
    path = existing(source, "give a video file, or a folder of its frames")
    if not path.is_dir():
        if path.suffix.lower() not in SUFFIXES:
            raise UserError(f"{source!r} has none of the endings of a video ({', '.join(sorted(SUFFIXES))})")
        require()
        try:
            return open_file(path.name, path)
        except UnreadableError as error:
            raise UserError(f"{source!r} cannot be read as a video: {error}") from error
    found = folders_of_frames(list_images(path).entries)
    if len(found) != 1:
        names = ", ".join(repr(folder.name) for folder in found[:3])
        what = f"{len(found)} folders of images ({names}{', ...' if len(found) > 3 else ''})" if found else "no image"
        raise UserError(f"{source!r} holds {what}: give the folder of the frames of one video")
    return found[0]


def frames_of(video: Video) -> Iterator[Tensor]:
    """All frames of ``video``, each (H, W, 3) uint8, of which a few are in memory at a time.

    Raises:
        UnreadableError: saying why, if one cannot be had, or is of another size than the first.
    """
    shape = None
    for start in range(0, len(video), _AT_ONCE):
        frames = video.read(range(start, min(start + _AT_ONCE, len(video))))
        if shape not in (None, frames.shape[1:]):
            raise UnreadableError("its frames differ in size")
        shape = frames.shape[1:]
        yield from frames


def frame_rate(video: Video) -> float:
    """Frames a second, on average; of a folder, which does not tell, DAVIS's 24."""
    if not isinstance(video, VideoFile) or len(video) < 2 or video.times[-1] == video.times[0]:
        return 24.0
    return float((len(video) - 1) / ((video.times[-1] - video.times[0]) * video.unit))


def _natural(name: str) -> list[tuple[int, str]]:
    """A key to sort by in which numbers count as numbers."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name) if part]


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, Any]]:
    """The file and its video, undecoded; whatever fails within is an ``UnreadableError``."""
    av = require()
    try:
        # as `options` PyAV below 18 would crash on streams that show only as the file is read, as those of mpg
        with av.open(str(path), container_options=_OPTIONS, metadata_errors="ignore") as container:
            stream = container.streams.best("video")
            if stream is None:
                raise UnreadableError("no video in it")
            codec = stream.codec_context
            if codec is None:
                raise UnreadableError("FFmpeg has no decoder for it")
            if codec.width * codec.height > MAX_PIXELS:
                raise UnreadableError(f"{codec.width} x {codec.height} pixels are more than the {MAX_PIXELS} allowed")
            codec.options = {"max_pixels": str(MAX_PIXELS)}  # the size may change on the way
            codec.thread_count = 1  # clips are decoded in parallel, not frames
            yield container, stream
    except UnreadableError:
        raise
    except Exception as error:  # a decoder given damaged bytes may raise anything
        raise UnreadableError(f"damaged: {getattr(error, 'strerror', None) or one_line(error)}") from error


def _pixels(frame: Any, size: int | None) -> np.ndarray:
    """(H, W, 3) uint8, upright."""
    pixels = frame.to_ndarray(format="rgb24")
    if turns := round(frame.rotation / 90) % 4:
        pixels = np.ascontiguousarray(np.rot90(pixels, turns))
    return pixels if size is None else np.asarray(centre(Image.fromarray(pixels), size))
