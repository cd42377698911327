from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from wav_files import write_wav

from fastssl import methods, models
from fastssl.data.audio import list_recordings
from fastssl.data.clips import ClipLoader, ClipSet
from fastssl.data.images import ImageSet, Splits
from fastssl.data.media import Data
from fastssl.data.views import make_views

# Encoders of the methods' recipes, as small as they can be for images of 16 pixels.
TINY: dict[str, dict[str, Any]] = {
    "resnet18": {"stem": "cifar", "width": 4},
    "alexnet_split": {"stem": "cifar", "width": 8},
    "vit_micro": {"patch_size": 4, "width": 32, "depth": 2, "image_size": 16},
    "wave_gru": {"width": 8},
}


@pytest.fixture
def build() -> Callable[..., methods.Method]:
    """Builds a method by name on its recipe's encoder, a tiny one; further arguments are the method's settings."""

    def build(name: str, *, seed: int = 0, **settings: Any) -> methods.Method:
        torch.manual_seed(seed)
        kind = methods.get(name)
        encoder = kind.recipe.get("encoder", "resnet18")
        return kind.build(models.get(encoder)(**TINY[encoder]), kind.Config(**settings), size=16)

    return build


@pytest.fixture
def views_of() -> Callable[..., list[Tensor]]:
    """Views of noise by a method's own plan; for methods that take them clips of four frames, or windows of sweeps."""

    def views_of(method: methods.Method, *, batch: int = 6, size: int = 16) -> list[Tensor]:
        generator = torch.Generator().manual_seed(0)
        if method.modality == "video":
            clips = list_of_clips(batch, size, FRAMES, every=FRAMES)
            return next(ClipLoader(clips, method.view_plan(size), batch, seed=0, threads=1).epoch(0))
        if method.modality == "audio":
            return [sweeps(batch, SAMPLES)]
        images = torch.randint(256, (batch, 3, size, size), dtype=torch.uint8, generator=generator)
        return make_views(images, method.view_plan(size), generator)

    return views_of


@pytest.fixture
def data_of(tmp_path: Path) -> Callable[..., Data]:
    """What a method is trained on: noise, as images or as clips; or recordings of sweeps."""

    def data_of(name: str, count: int, size: int) -> Data:
        if methods.get(name).modality == "video":
            return list_of_clips(count, size, FRAMES, every=1)
        if methods.get(name).modality == "audio":
            for i, wave in enumerate(sweeps(count, 2 * SAMPLES)):
                write_wav(tmp_path / "sweeps" / f"{i}.wav", (32767 * wave).short().numpy())
            return list_recordings(str(tmp_path / "sweeps"))
        generator = torch.Generator().manual_seed(0)
        images = torch.randint(256, (count, 3, size, size), dtype=torch.uint8, generator=generator)
        return Splits(ImageSet(images, None, (), tuple(map(str, range(count))), "noise"), None)

    return data_of


FRAMES = 4
SAMPLES = 2560


def sweeps(count: int, samples: int) -> Tensor:
    """(count, samples) in [-1, 1]: tones, each of another pitch, that rise."""
    time = torch.linspace(0, 1, samples)
    pitch = torch.arange(1, count + 1)[:, None]
    return 0.5 * torch.sin(40 * pitch * (time + time**2))


@dataclass(frozen=True)
class Drift:
    """A video of blurred noise that moves to the right, two pixels a frame."""

    pixels: Tensor
    name: str = "drift"

    def __len__(self) -> int:
        return 64

    def spaced(self, stride: int, fps: float | None) -> list[int]:
        return list(range(0, len(self), stride))

    def read(self, frames: Sequence[int], size: int | None = None) -> Tensor:
        return torch.stack([self.pixels.roll(2 * frame, 1) for frame in frames])


def list_of_clips(count: int, size: int, frames: int, *, every: int) -> ClipSet:
    """``count`` clips of one video in colour."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(1, 3, 8, 8, generator=generator)
    pixels = torch.nn.functional.interpolate(coarse, (size, 2 * size), mode="bilinear")[0]
    video = Drift((255 * pixels).byte().movedim(0, 2).contiguous())
    clips = tuple((0, tuple(range(every * i, every * i + frames))) for i in range(count))
    return ClipSet((video,), clips)


@pytest.fixture
def descend() -> Callable[..., list[float]]:
    """Losses of 30 steps on one batch, of which all that a method draws is drawn alike."""

    def descend(method: methods.Method, views: list[Tensor], *, precision: torch.dtype = torch.float32) -> list[float]:
        optimizer = torch.optim.AdamW(method.parameters(), lr=1e-3)
        losses = []
        for step in range(30):
            optimizer.zero_grad()
            torch.manual_seed(0)
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16):
                loss = method(views)
            loss.backward()
            optimizer.step()
            method.after_step((step + 1) / 30)
            losses.append(loss.item())
        return losses

    return descend
