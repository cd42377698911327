"""Masks drawn over the frames of a video, as moving pictures."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from fastssl.data import video
from fastssl.data.masks import PALETTE, VOID
from fastssl.errors import UserError
from fastssl.files import atomic_write

FORMATS = (".gif", ".mp4")

_SHARE = 0.55  # of the object's colour in what is drawn
_LARGEST = 640  # pixels of the long side of a gif, which has no compression to speak of
_GIF_RATE = 15.0  # frames a second of a gif, at most


def overlaid(frame: Tensor, mask: Tensor, palette: bytes = PALETTE) -> Tensor:
    """A frame whose objects are tinted, with white outlines.

    Args:
        frame: (H, W, 3) uint8.
        mask: (H, W) uint8; 0 and ``VOID`` are no objects.
        palette: 256 times red, green and blue.
    Returns:
        (H, W, 3) uint8.
    """
    table = torch.tensor(list(palette), dtype=torch.float32).view(256, 3)
    shown = mask.where(mask != VOID, 0)
    tinted = (1 - _SHARE) * frame + _SHARE * table[shown.long()]
    drawn = torch.where(shown[..., None] > 0, tinted, frame.float())
    around = F.max_pool2d(shown[None, None].float(), 3, stride=1, padding=1)[0, 0]
    outline = around != shown
    return drawn.masked_fill(outline[..., None], 255.0).round().byte()


def check_movie(path: Path) -> None:
    """Refuses a file name that `write_movie` does not know, before anything is computed.

    Raises:
        UserError: saying which there are.
    """
    if path.suffix.lower() not in FORMATS:
        raise UserError(f"{path} does not end in {' or '.join(FORMATS)}: the ending chooses the format")
    if path.suffix.lower() == ".mp4":
        video.require()


def write_movie(frames: Iterable[Tensor], path: Path, rate: float) -> None:
    """Writes (H, W, 3) uint8 frames, ``rate`` a second, as a gif, reduced to 640 pixels and 15 a second, or an mp4.

    Raises:
        UserError: for another ending, if PyAV is missing for an mp4, or if the file system refuses.
    """
    check_movie(path)
    with atomic_write(path) as partial:
        if path.suffix.lower() == ".gif":
            partial.write_bytes(as_gif(frames, rate))
        else:
            _write_mp4(frames, partial, rate)


def as_gif(frames: Iterable[Tensor], rate: float) -> bytes:
    """The bytes of a gif that repeats; arguments are those of `write_movie`."""
    every = max(1, -int(-rate // _GIF_RATE))
    pictures = [_reduced(frame) for i, frame in enumerate(frames) if i % every == 0]
    data = io.BytesIO()
    pause = max(20, 10 * round(100 * every / rate))  # in milliseconds, of which a gif knows whole hundredths
    pictures[0].save(data, "GIF", save_all=True, append_images=pictures[1:], duration=pause, loop=0)
    return data.getvalue()


def beside(movies: Sequence[Sequence[Tensor]], height: int) -> Iterator[Tensor]:
    """Frames of several movies beside each other, each scaled to ``height``; who ends early stays at its last."""
    for i in range(max(map(len, movies))):
        row = [movie[min(i, len(movie) - 1)] for movie in movies]
        yield torch.cat([_scaled(frame, height / frame.shape[0]) for frame in row], 1)


def _reduced(frame: Tensor) -> Image.Image:
    scaled = _scaled(frame, min(1.0, _LARGEST / max(frame.shape[:2])))
    return Image.fromarray(scaled.numpy()).quantize(128, dither=Image.Dither.NONE)


def _scaled(frame: Tensor, factor: float) -> Tensor:
    if factor == 1:
        return frame
    height, width = (max(1, round(length * factor)) for length in frame.shape[:2])
    picture = Image.fromarray(frame.numpy()).resize((width, height), Image.Resampling.LANCZOS)
    return torch.from_numpy(np.array(picture))


def _write_mp4(frames: Iterable[Tensor], path: Path, rate: float) -> None:
    av = video.require()
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=Fraction(rate).limit_denominator(1001), options={"crf": "20"})
        stream.pix_fmt = "yuv420p"
        for i, frame in enumerate(frames):
            even = frame[: frame.shape[0] // 2 * 2, : frame.shape[1] // 2 * 2]  # which the format asks for
            if i == 0:
                stream.height, stream.width = even.shape[:2]
            container.mux(stream.encode(av.VideoFrame.from_ndarray(even.contiguous().numpy(), format="rgb24")))
        container.mux(stream.encode())
