"""SimCLR's views and DINO's from JPEG files of 500 x 375: ours through Pillow and through DALI, DALI's, torchvision's.

Every provider decodes every file at every call, as an epoch does, in a process of its own (`benchmarks.elsewhere`).
``fastssl`` is the engine 'stream', whose kernel takes the images that Pillow decoded in their own sizes. The pipelines
of DALI's own operators are what its users write (`benchmarks.data._dali`). torchvision augments image by image, in two
workers of torch's DataLoader. A case of N images in t ms serves 1000 N / t images a second.
"""

from __future__ import annotations

import atexit
import functools
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from benchmarks import where
from benchmarks.data import _dali
from benchmarks.elsewhere import Elsewhere
from benchmarks.harness import OURS, Case, Work
from benchmarks.ops.augment import PLANS, WORKERS, torchvision_transform
from fastssl.data.dali import DaliLoader
from fastssl.data.plans import ViewPlan
from fastssl.data.sources import list_images
from fastssl.data.stream import StreamLoader
from fastssl.data.views import make_views

HEIGHT, WIDTH, BATCH = 375, 500, 32


def sizes() -> tuple[tuple[str, int, int], ...]:
    """Plans, the side of their large views, and how many images there are: here and of shards."""
    return where.sizes(
        cpu=(("SimCLR", 224, 256), ("DINO 2 + 8", 224, 128)),
        gpu=(("SimCLR", 224, 2048), ("DINO 2 + 8", 224, 2048)),
        small=(),
    )


@functools.cache
def folder(n: int) -> Path:
    """A folder, kept till the end, of ``n`` JPEG files as large as those of photographs: smooth, with some noise."""
    made = Path(tempfile.mkdtemp(prefix="fastssl-jpeg-"))
    atexit.register(shutil.rmtree, made, ignore_errors=True)
    rng = np.random.default_rng(0)
    for i in range(n):
        coarse = Image.fromarray(rng.integers(0, 256, (HEIGHT // 25, WIDTH // 25, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)).astype(int)
        noisy = (smooth + rng.integers(-12, 13, smooth.shape)).clip(0, 255).astype(np.uint8)
        Image.fromarray(noisy).save(made / f"{i:05}.jpg", quality=90)
    return made


class Epochs:
    """One epoch a call, each another; with a plan, if views are made."""

    def __init__(self, epoch: Callable[[int], Any], plan: ViewPlan | None = None) -> None:
        self._epoch, self._next = epoch, 0
        if plan is not None:
            self.first_op = functools.partial(_make_one, plan)

    def __call__(self) -> int:
        """Views that were made; none is kept."""
        self._next += 1
        return sum(len(views) for views in self._epoch(self._next))


def _make_one(plan: ViewPlan) -> None:
    """Calls the op that makes the views, here and not on an engine's threads."""
    pixel = torch.zeros(1, 3, 1, 1, dtype=torch.uint8, device=where.device())
    make_views(pixel, plan, torch.Generator(device="cpu"))


def by_dali(plan: ViewPlan, n: int) -> Work:
    device: Literal["cpu", "mixed"] = "mixed" if where.on_gpu() else "cpu"
    return Epochs(DaliLoader(list_images(folder(n)), plan, BATCH, 0, device=device).epoch, plan)


def by_dali_alone(plan: ViewPlan, n: int, *, decode_each_crop: bool) -> Work:
    paths = sorted(folder(n).iterdir())
    return Epochs(_dali.batches(plan, paths, BATCH, decode_each_crop=decode_each_crop), plan)


def by_stream(plan: ViewPlan, n: int) -> Work:
    return Epochs(StreamLoader(list_images(folder(n)), plan, BATCH, 0, device=where.device()).epoch, plan)


class Files(torch.utils.data.Dataset[list[Tensor]]):
    """All views of each file, one image at a time."""

    def __init__(self, plan: ViewPlan, paths: list[Path]) -> None:
        self.transforms = [torchvision_transform(part) for part in plan.parts for _ in range(part.views)]
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, i: int) -> list[Tensor]:
        with Image.open(self.paths[i]) as image:
            upright = image.convert("RGB")
        return [transform(upright) for transform in self.transforms]


def by_torchvision(plan: ViewPlan, n: int) -> Work:
    loader = torch.utils.data.DataLoader(
        Files(plan, sorted(folder(n).iterdir())),
        BATCH,
        shuffle=True,
        generator=torch.Generator(device="cpu").manual_seed(0),
        num_workers=WORKERS,
        multiprocessing_context="fork",  # as Linux's default is, which a process that was spawned does not have
        persistent_workers=True,
    )
    return Epochs(lambda epoch: ([view.to(where.device()) for view in views] for views in loader), plan)


MAKERS: dict[str, Callable[..., Work]] = {
    OURS: by_stream,
    "fastssl, engine dali": by_dali,
    "DALI, its own operators": functools.partial(by_dali_alone, decode_each_crop=False),
    "DALI, its own operators, each crop decoded": functools.partial(by_dali_alone, decode_each_crop=True),
    f"torchvision on Pillow, {WORKERS} workers": by_torchvision,
}


def cases() -> list[Case]:
    return [
        Case(
            op="from_files",
            shape=f"{plan} {size}, {n} JPEG files of {HEIGHT} x {WIDTH}",
            dtype="float32",
            providers={
                name: functools.partial(Elsewhere, functools.partial(make, PLANS[plan](size), n))
                for name, make in MAKERS.items()
            },
        )
        for plan, size, n in sizes()
    ]
