"""Views of decoded images in memory, parameters drawn anew at each call: SimCLR at two sizes, and DINO's multi-crop.

On a GPU they are drawn before, ours and kornia's: the host draws them while the GPU is busy with the step before.
Rivals make them as people do: torchvision image by image, in this process and in two workers, kornia a batch at a time.
The images are noise, which no step takes a shorter way for.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks import where
from benchmarks.harness import OURS, Case, Work
from benchmarks.rivals import load
from fastssl import ops
from fastssl.data.plans import ViewPlan, dino, simclr
from fastssl.data.views import draw
from fastssl.ops.augment import blur_radius  # type: ignore[attr-defined]

WORKERS = 2
PLANS: dict[str, Callable[[int], ViewPlan]] = {"SimCLR": simclr, "DINO 2 + 8": dino}


@where.kept
def inputs(n: int, height: int, width: int) -> Tensor:
    return torch.randint(256, (n, 3, height, width), dtype=torch.uint8, generator=where.generator())


def ours(plan: ViewPlan, n: int, height: int, width: int, dtype: torch.dtype) -> Work:
    images, generator = inputs(n, height, width), torch.Generator(device="cpu").manual_seed(0)
    how = dict(mean=plan.mean, std=plan.std, interpolation=plan.interpolation, dtype=dtype)

    def drawn() -> ops.ViewParams:
        return draw(plan, (height, width), generator, count=n, device=where.device())

    params = drawn() if where.on_gpu() else None
    return lambda: tuple(ops.augment(images, drawn() if params is None else params, plan.sizes, **how))


def reference(plan: ViewPlan, n: int, height: int, width: int, dtype: torch.dtype) -> Work:
    make = ours(plan, n, height, width, dtype)

    def work() -> Any:
        with ops.backend("reference"):
            return make()

    return work


def torchvision_transform(plan: ViewPlan, dtype: torch.dtype = torch.float32) -> Any:
    """One view of an image: a tensor or Pillow's."""
    v2 = load("torchvision.transforms.v2")
    jitter = v2.ColorJitter(plan.brightness, plan.contrast, plan.saturation, plan.hue)
    taps = 2 * blur_radius(plan.size) + 1
    how = v2.InterpolationMode(plan.interpolation)
    steps = [
        v2.RandomResizedCrop(plan.size, plan.crop_scale, plan.crop_ratio, how, antialias=True),
        v2.RandomHorizontalFlip(plan.flip),
        v2.RandomApply([jitter], plan.jitter),
        v2.RandomGrayscale(plan.grayscale),
        v2.RandomApply([v2.GaussianBlur(taps, plan.blur_sigma)], plan.blur) if plan.blur else v2.Identity(),
        v2.RandomSolarize(128, plan.solarize) if plan.solarize else v2.Identity(),
        v2.ToImage(),
        v2.ToDtype(torch.float32, scale=True),
        v2.Normalize(plan.mean, plan.std),
        *([] if dtype == torch.float32 else [v2.ToDtype(dtype)]),
    ]
    return v2.Compose(steps)


class Views(torch.utils.data.Dataset[list[Tensor]]):
    """All views of each image, one image at a time."""

    def __init__(self, plan: ViewPlan, images: Sequence[Any], dtype: torch.dtype = torch.float32) -> None:
        self.transforms = [torchvision_transform(part, dtype) for part in plan.parts for _ in range(part.views)]
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> list[Tensor]:
        return [transform(self.images[i]) for transform in self.transforms]


def batches(plan: ViewPlan, images: list[Any], workers: int, dtype: torch.dtype) -> Iterable[Any]:
    """A loader of batches of 32, whose workers stay."""
    views = Views(plan, images, dtype)
    return torch.utils.data.DataLoader(views, 32, num_workers=workers, persistent_workers=workers > 0)


def torchvision_tensors(workers: int, plan: ViewPlan, n: int, height: int, width: int, dtype: torch.dtype) -> Work:
    loader = batches(plan, list(inputs(n, height, width)), workers, dtype)
    return lambda: [len(batch) for batch in loader]


def torchvision_pillow(plan: ViewPlan, n: int, height: int, width: int, dtype: torch.dtype) -> Work:
    to_pillow = load("torchvision.transforms.v2.functional").to_pil_image
    loader = batches(plan, [to_pillow(image) for image in inputs(n, height, width)], WORKERS, dtype)
    return lambda: [len(batch) for batch in loader]


def kornia_transform(plan: ViewPlan) -> Any:
    """One view of a batch of floats in [0, 1]; its own order of the four steps is drawn once a batch."""
    augmentation = load("kornia.augmentation")
    size, taps = (plan.size, plan.size), 2 * blur_radius(plan.size) + 1
    crop = dict(scale=plan.crop_scale, ratio=plan.crop_ratio, resample=plan.interpolation)
    steps = [
        augmentation.RandomResizedCrop(size, **crop),
        augmentation.RandomHorizontalFlip(p=plan.flip),
        augmentation.ColorJitter(plan.brightness, plan.contrast, plan.saturation, plan.hue, p=plan.jitter),
        augmentation.RandomGrayscale(p=plan.grayscale),
        augmentation.RandomGaussianBlur((taps, taps), plan.blur_sigma, p=plan.blur),
        augmentation.RandomSolarize(0.0, 0.0, p=plan.solarize),
        augmentation.Normalize(plan.mean, plan.std),
    ]
    return augmentation.AugmentationSequential(*[step for step in steps if step.p > 0], data_keys=["input"])


def kornia(
    plan: ViewPlan, n: int, height: int, width: int, dtype: torch.dtype, computed_in: torch.dtype = torch.float32
) -> Work:
    """The values of the images are of type ``computed_in``."""
    images = inputs(n, height, width)
    transforms = [kornia_transform(part) for part in plan.parts for _ in range(part.views)]

    def work() -> Any:
        values = images.to(computed_in) / 255
        return [view(values, params=params).to(dtype) for view, params in zip(transforms, drawn, strict=True)]

    drawn: list[Any] = [None] * len(transforms)
    if where.on_gpu():
        work()
        drawn = [view._params for view in transforms]
    return work


def pixels(plan: ViewPlan) -> int:
    """Of all views of an image."""
    return sum(part.views * part.size**2 for part in plan.parts)


def cases() -> list[Case]:
    makers: dict[str, Callable[..., Work]] = {
        OURS: ours,
        "reference": reference,
        **where.only_on_cpu(
            {
                "torchvision tensors": functools.partial(torchvision_tensors, 0),
                f"torchvision tensors, {WORKERS} workers": functools.partial(torchvision_tensors, WORKERS),
                f"torchvision on Pillow, {WORKERS} workers": torchvision_pillow,
            }
        ),
        "kornia": kornia,
        "kornia, computed in bfloat16": functools.partial(kornia, computed_in=torch.bfloat16),
    }
    return [
        Case(
            op="augment",
            shape=f"{plan} {size}, {n} images of {height} x {width}",
            dtype=str(dtype).removeprefix("torch."),
            providers={
                name: functools.partial(make, PLANS[plan](size), n, height, width, dtype)
                for name, make in makers.items()
                if dtype == torch.bfloat16 or not name.endswith("bfloat16")
            },
            bytes_moved=3 * n * (height * width + dtype.itemsize * pixels(PLANS[plan](size))),
            peak=plan != "SimCLR",
        )
        for plan, size, n, height, width, dtype in where.sizes(
            cpu=(
                ("SimCLR", 224, 256, 256, 256, torch.float32),
                ("SimCLR", 224, 256, 256, 256, torch.bfloat16),
                ("SimCLR", 224, 256, 375, 500, torch.float32),
                ("SimCLR", 32, 2048, 32, 32, torch.float32),
                ("DINO 2 + 8", 224, 64, 256, 256, torch.float32),
            ),
            gpu=(
                ("SimCLR", 224, 256, 256, 256, torch.bfloat16),
                ("SimCLR", 224, 256, 256, 256, torch.float32),
                ("SimCLR", 224, 256, 375, 500, torch.bfloat16),
                ("SimCLR", 32, 8192, 32, 32, torch.bfloat16),
                ("DINO 2 + 8", 224, 256, 256, 256, torch.bfloat16),
            ),
            small=(("SimCLR", 32, 2, 40, 48, torch.bfloat16),),
        )
    ]
