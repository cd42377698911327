"""A whole epoch of SimCLR's two views of 50,000 images of 32 x 32 in memory, as many as CIFAR-10 has, by the loaders.

``fastssl`` is the engine 'native', which makes the views of a batch when it is asked for. torchvision's rival is what
people write for CIFAR-10, whose data set makes an image of Pillow's of a part of an array and augments it, one after
the other, in two workers of torch's DataLoader; kornia's augments a batch at a time. All of them shuffle and leave no
image out: no time is scaled up from that of a part. The images are noise. A case of N images in t ms serves
1000 N / t images a second.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from benchmarks import where
from benchmarks.data.from_files import Epochs
from benchmarks.harness import OURS, Case, Work
from benchmarks.ops.augment import WORKERS, Views, kornia_transform
from fastssl.data.images import ImageSet
from fastssl.data.loader import Loader
from fastssl.data.plans import ViewPlan, simclr

IMAGES, SIDE = 50_000, 32
BATCH = 250  # a divisor of the images: whole batches hold them all


@functools.lru_cache(1)
def pixels(n: int) -> Tensor:
    generator = torch.Generator(device="cpu").manual_seed(0)
    return torch.randint(256, (n, 3, SIDE, SIDE), dtype=torch.uint8, generator=generator, device="cpu")


def by_loader(plan: ViewPlan, n: int) -> Work:
    data = ImageSet(pixels(n), None, (), tuple(map(str, range(n))), "noise")
    return Epochs(Loader(data, plan, BATCH, 0, where.device()).epoch, plan)


class Pictures:
    """Images of Pillow's, each made when it is asked for, as torchvision's ``CIFAR10`` does."""

    def __init__(self, n: int) -> None:
        self.pixels = np.ascontiguousarray(pixels(n).movedim(1, 3).numpy())

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, i: int) -> Image.Image:
        return Image.fromarray(self.pixels[i])


def by_torchvision(plan: ViewPlan, n: int) -> Work:
    loader = torch.utils.data.DataLoader(
        Views(plan, Pictures(n)),
        BATCH,
        shuffle=True,
        generator=torch.Generator(device="cpu").manual_seed(0),
        num_workers=WORKERS,
        persistent_workers=True,
    )
    return Epochs(lambda epoch: ([view.to(where.device()) for view in views] for views in loader), plan)


def by_kornia(plan: ViewPlan, n: int) -> Work:
    images = pixels(n).to(where.device())
    transforms = [kornia_transform(part) for part in plan.parts for _ in range(part.views)]

    def epoch(number: int) -> Iterator[list[Tensor]]:
        generator = torch.Generator(device="cpu").manual_seed(number)
        for chosen in torch.randperm(n, generator=generator, device="cpu").split(BATCH):
            values = images[chosen.to(images.device)].float() / 255
            yield [view(values) for view in transforms]

    return Epochs(epoch, plan)


def cases() -> list[Case]:
    makers: dict[str, Callable[[ViewPlan, int], Work]] = {
        OURS: by_loader,
        f"torchvision on Pillow, {WORKERS} workers": by_torchvision,
        "kornia": by_kornia,
    }
    return [
        Case(
            op="epoch",
            shape=f"SimCLR {SIDE}, all of {IMAGES} images of {SIDE} x {SIDE} in memory",
            dtype="float32",
            providers={name: functools.partial(make, simclr(SIDE), IMAGES) for name, make in makers.items()},
        )
    ]
