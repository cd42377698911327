"""Clips of uint8 frames: from an H.264 file at random, and from folders of JPEG frames.

Of the file, ours decodes each clip from the keyframe before it. Rivals are PyAV from the start of the file, which is
how a frame is found by counting, and PyAV through the whole file once, which is the least that can be decoded where all
frames are wanted, and needs the memory for them. Of folders, the rival is a loop with Pillow, and one in two workers of
torch's DataLoader. A case of N frames in t ms serves 1000 N / t frames a second.
"""

from __future__ import annotations

import atexit
import functools
import shutil
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from benchmarks.data import from_files
from benchmarks.harness import OURS, Case, Work
from benchmarks.ops.augment import WORKERS
from fastssl.data.clips import ClipSet, list_clips
from fastssl.data.video import require

HEIGHT, WIDTH, RATE, KEYFRAMES = 360, 640, 25, 50
FRAMES, STRIDE, CLIPS = 8, 2, 16


def _folder(name: str) -> Path:
    made = Path(tempfile.mkdtemp(prefix=f"fastssl-{name}-"))
    atexit.register(shutil.rmtree, made, ignore_errors=True)
    return made


@functools.cache
def file() -> Path:
    """An H.264 file, kept till the end, of a texture that moves: as many frames as the clips have."""
    path = _folder("video") / "moving.mp4"
    coarse = Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 60, 3), dtype=np.uint8))
    texture = np.asarray(coarse.resize((2 * WIDTH, HEIGHT), Image.Resampling.BICUBIC))
    with require().open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=RATE, options={"g": str(KEYFRAMES)})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for i in range(FRAMES * STRIDE * CLIPS):
            moved = np.ascontiguousarray(texture[:, 2 * i % WIDTH :][:, :WIDTH])
            frame = require().VideoFrame.from_ndarray(moved, format="rgb24")
            frame.pts, frame.time_base = i, Fraction(1, RATE)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


@functools.cache
def frame_folders() -> Path:
    """Folders of JPEG frames, kept till the end: one for each clip."""
    made = _folder("frames")
    images = sorted(from_files.folder(FRAMES * CLIPS).iterdir())
    for i, path in enumerate(images):
        target = made / f"{i // FRAMES:03}" / path.name
        target.parent.mkdir(exist_ok=True)
        shutil.copy(path, target)
    return made


def by_clip_set(clips: ClipSet) -> Work:
    pool = ThreadPoolExecutor(torch.get_num_threads())

    def epoch(number: int) -> list[Tensor]:
        order = torch.randperm(len(clips), generator=torch.Generator(device="cpu").manual_seed(number))
        return list(pool.map(clips.read, order.tolist()))

    return from_files.Epochs(epoch)


def ours_of_file() -> Work:
    return by_clip_set(list_clips(str(file().parent), FRAMES, stride=STRIDE))


def ours_of_folders() -> Work:
    return by_clip_set(list_clips(str(frame_folders()), FRAMES))


def from_the_start() -> Work:
    def clip(first: int) -> Tensor:
        wanted = set(range(first, first + FRAMES * STRIDE, STRIDE))
        found = []
        with require().open(str(file())) as container:
            container.streams.video[0].thread_type = "AUTO"
            for i, frame in enumerate(container.decode(video=0)):
                if i in wanted:
                    found.append(torch.from_numpy(frame.to_ndarray(format="rgb24")))
                if len(found) == FRAMES:
                    break
        return torch.stack(found)

    def epoch(number: int) -> list[Tensor]:
        order = torch.randperm(CLIPS, generator=torch.Generator(device="cpu").manual_seed(number))
        return [clip(i * FRAMES * STRIDE) for i in order.tolist()]

    return from_files.Epochs(epoch)


def whole_file() -> Work:
    def epoch(number: int) -> list[Tensor]:
        with require().open(str(file())) as container:
            container.streams.video[0].thread_type = "AUTO"
            frames = [
                torch.from_numpy(frame.to_ndarray(format="rgb24"))
                for i, frame in enumerate(container.decode(video=0))
                if i % STRIDE == 0
            ]
        order = torch.randperm(CLIPS, generator=torch.Generator(device="cpu").manual_seed(number))
        return [torch.stack(frames[i * FRAMES : (i + 1) * FRAMES]) for i in order.tolist()]

    return from_files.Epochs(epoch)


class Folders(torch.utils.data.Dataset[Tensor]):
    """A folder's frames, by Pillow."""

    def __init__(self) -> None:
        self.folders = sorted(frame_folders().iterdir())

    def __len__(self) -> int:
        return len(self.folders)

    def __getitem__(self, i: int) -> Tensor:
        found = []
        for path in sorted(self.folders[i].iterdir()):
            with Image.open(path) as image:
                found.append(torch.from_numpy(np.array(image.convert("RGB"))))
        return torch.stack(found)


def by_pillow(workers: int) -> Work:
    loader = torch.utils.data.DataLoader(
        Folders(),
        None,
        shuffle=True,
        generator=torch.Generator(device="cpu").manual_seed(0),
        num_workers=workers,
        persistent_workers=workers > 0,
    )
    return from_files.Epochs(lambda epoch: loader)


def cases() -> list[Case]:
    n = CLIPS * FRAMES
    sources: dict[str, dict[str, Callable[[], Work]]] = {
        f"{n} frames in clips of {FRAMES} at random, H.264 of {HEIGHT} x {WIDTH}, a keyframe every {KEYFRAMES}": {
            OURS: ours_of_file,
            "PyAV, each clip from the start": from_the_start,
            "PyAV, the whole file once": whole_file,
        },
        f"{n} frames in {CLIPS} folders, JPEG of {from_files.HEIGHT} x {from_files.WIDTH}": {
            OURS: ours_of_folders,
            "Pillow, a plain loop": functools.partial(by_pillow, 0),
            f"Pillow, {WORKERS} workers": functools.partial(by_pillow, WORKERS),
        },
    }
    return [Case(op="video", shape=shape, dtype="uint8", providers=makers) for shape, makers in sources.items()]
