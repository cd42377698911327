"""Small videos, made where they are needed, whose frames can be told apart."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

try:
    import av
except ImportError:
    av = None
needs_av = pytest.mark.skipif(av is None, reason="PyAV is not installed: pip install 'fastssl[video]'")

HEIGHT, WIDTH, BITS = 32, 48, 8

# each with a suffix, options, and frames that are decoded before they are shown
CODECS = {
    "h264": ("libx264", ".mp4", {"g": "12", "bf": "2", "preset": "ultrafast"}),
    "h264 open gop": (
        "libx264",
        ".mkv",
        {"g": "10", "bf": "3", "x264-params": "open-gop=1:b-pyramid=normal:scenecut=0"},
    ),
    "h264 one keyframe": ("libx264", ".mov", {"g": "1000", "bf": "2"}),
    "h264 without keyframes": ("libx264", ".mov", {"g": "15", "intra-refresh": "1"}),
    "h264 without times": ("libx264", ".avi", {"g": "10", "bf": "2"}),
    "mpeg4": ("mpeg4", ".avi", {"g": "9"}),
    "mpeg4 with b-frames": ("mpeg4", ".avi", {"g": "9", "bf": "2"}),
    "vp8": ("libvpx", ".webm", {"g": "15", "auto-alt-ref": "1", "lag-in-frames": "12", "deadline": "good"}),
    "vp9": ("libvpx-vp9", ".webm", {"g": "15", "lag-in-frames": "12", "deadline": "realtime", "cpu-used": "8"}),
    "mjpeg": ("mjpeg", ".avi", {}),
    "mpeg2": ("mpeg2video", ".mpg", {"g": "10", "bf": "2"}),
}


def coded(number: int, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """(H, W, 3) uint8: the number's bits as black and white columns, of which lossy codecs leave enough."""
    bits = [255 * (number >> bit & 1) for bit in range(BITS)]
    row = np.repeat(np.array(bits, dtype=np.uint8), width // BITS)
    return np.broadcast_to(row[None, :, None], (height, width, 3)).copy()


def numbers(frames: Tensor) -> list[int]:
    """The numbers of (T, H, W, 3) frames."""
    columns = frames.float().mean((1, 3)).unflatten(1, (BITS, -1)).mean(2) > 127
    return (columns * 2 ** torch.arange(BITS)).sum(1).tolist()


def write_video(
    path: Path,
    count: int = 40,
    codec: str = "libx264",
    options: dict[str, str] | None = None,
    *,
    times: Sequence[int] | None = None,
    unit: Fraction = Fraction(1, 25),
    shape: tuple[int, int] = (HEIGHT, WIDTH),
) -> Path:
    """Frames 0, 1, ... as a video; ``times``, in ``unit``, say when each is shown."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(codec, rate=25, options=options or {})
        stream.height, stream.width = shape
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        if times is not None:
            stream.codec_context.time_base = unit
        for i in range(count):
            frame = av.VideoFrame.from_ndarray(coded(i, *shape), format="rgb24")
            frame.pts, frame.time_base = (i if times is None else times[i]), unit
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def from_the_start(path: Path) -> Tensor:
    """All frames, as PyAV decodes them one after the other."""
    with av.open(str(path)) as container:
        return torch.stack([torch.from_numpy(f.to_ndarray(format="rgb24")) for f in container.decode(video=0)])


def write_frames(root: Path, videos: dict[str, int]) -> Path:
    """Folders of JPEG frames, without leading zeros in their names."""
    from image_files import encode
    from PIL import Image

    for name, count in videos.items():
        (root / name).mkdir(parents=True)
        for i in range(count):
            data = encode(Image.fromarray(coded(i)), "JPEG", quality=90)
            (root / name / f"{i}.jpg").write_bytes(data)
    return root
