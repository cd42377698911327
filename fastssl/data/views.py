"""Views of a batch of images by a plan: parameters are drawn, then ``ops.augment`` makes the views."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from fastssl.data.plans import ViewPlan
from fastssl.ops import PackedImages, ViewParams, augment
from fastssl.ops._views import check_images

_CROP_ATTEMPTS = 10


def make_views(
    images: Tensor | PackedImages,
    plan: ViewPlan,
    generator: torch.Generator,
    *,
    params: ViewParams | None = None,
    dtype: torch.dtype = torch.float32,
    channels_last: bool = False,
) -> list[Tensor]:
    """Draws all views of ``plan`` of each image: ``draw``, for whoever wants the parameters too, then ``ops.augment``.

    Args:
        images: (B, 3, H, W) or (B, H, W, 3) uint8, on any device, or ``PackedImages`` of different sizes. A shape that
            fits both is taken for the first.
        plan: how views are made.
        generator: the only source of randomness, on any device; a CPU generator gives the same draws for images on
            any device.
        params: what ``draw`` gave, to use in place of drawing: the same views again.
        dtype: float32, bfloat16 or float16 of the views, which are computed in float32.
        channels_last: whether the views are laid out as ``torch.channels_last``.

    Returns:
        ``plan.total`` tensors (B, 3, size, size) on the images' device, normalised by the plan's mean and std.

    Raises:
        TypeError: if the images are not uint8.
        ValueError: naming the shape, if it is none of these with at least one pixel.
    """
    pixels, places = check_images("make_views", images)
    if params is None:
        if places is None:
            params = draw(plan, pixels.shape[2:], generator, count=len(pixels), device=pixels.device)
        else:
            params = draw(plan, places[:, 1:], generator, device=pixels.device)
    return augmented(images, params, plan, dtype=dtype, channels_last=channels_last)


def augmented(
    images: Tensor | PackedImages,
    params: ViewParams,
    plan: ViewPlan,
    *,
    dtype: torch.dtype = torch.float32,
    channels_last: bool = False,
) -> list[Tensor]:
    """What ``ops.augment`` makes of images by parameters that were drawn for ``plan``."""
    return augment(
        images,
        params,
        plan.sizes,
        mean=plan.mean,
        std=plan.std,
        interpolation=plan.interpolation,
        dtype=dtype,
        channels_last=channels_last,
    )


def draw(
    plan: ViewPlan,
    shape: Sequence[int] | Tensor,
    generator: torch.Generator,
    *,
    count: int | None = None,
    device: torch.device | str | None = None,
) -> ViewParams:
    """Parameters of all views of ``plan``, drawn for each sample by itself; ``ops.augment`` takes them.

    Area and aspect of a crop are drawn until it fits into the image, ten times at most; then the largest central crop
    of an allowed aspect is taken. Crops are whole pixels. Factors of colour are uniform, and neutral for samples that
    are not jittered; the order of the steps is any of 24. All as torchvision draws them.

    Args:
        plan: how views are made.
        shape: height and width of all images, or (N, 2) int64, of each.
        generator: the only source of randomness, on any device.
        count: how many images, where ``shape`` is that of all.
        device: of the parameters; by default the generator's.
    Returns:
        The parameters of V = ``plan.total`` views of N images.
    Raises:
        ValueError: without a count for a shape of all images.
    """
    if not isinstance(shape, Tensor):
        if count is None:
            raise ValueError("draw: count must say how many images there are, for shape is one for all")
        shape = torch.tensor(shape).expand(count, 2)
    shapes = shape.to(generator.device)
    parts = [_draw_part(part, shapes, generator) for part in plan.parts]
    there = device or generator.device
    return ViewParams(*(torch.cat(columns).to(there, non_blocking=True) for columns in zip(*parts, strict=True)))


def _draw_part(plan: ViewPlan, shapes: Tensor, generator: torch.Generator) -> ViewParams:
    """The views that are made with one and the same settings."""
    device = generator.device
    # one row of uniform numbers a view and sample, used from left to right
    columns = 2 * _CROP_ATTEMPTS + 17
    unit = iter(torch.rand(plan.views, len(shapes), columns, generator=generator, device=device).unbind(2))

    def uniform(low: float, high: float) -> Tensor:
        return next(unit) * (high - low) + low

    def happens(probability: float) -> Tensor:
        return next(unit) < probability

    crop = _crop(plan, shapes, torch.stack([next(unit) for _ in range(2 * _CROP_ATTEMPTS + 2)], 2).double())
    flip, turn, jittered = happens(plan.flip), uniform(0, len(plan.rot90)), happens(plan.jitter)
    turns = torch.tensor(plan.rot90, device=device)[turn.long().clamp(max=len(plan.rot90) - 1)]
    factors = [
        torch.where(jittered, uniform(max(0.0, 1 - strength), 1 + strength), 1.0)
        for strength in (plan.brightness, plan.contrast, plan.saturation)
    ]
    factors.append(torch.where(jittered, uniform(-plan.hue, plan.hue), 0.0))
    order = torch.stack([next(unit) for _ in range(4)], 2).argsort(2)
    gray, blurred = happens(plan.grayscale), happens(plan.blur)
    sigma = torch.where(blurred, uniform(*plan.blur_sigma), 0.0)
    return ViewParams(crop, flip, turns, order, torch.stack(factors, 2), gray, sigma, solarize=happens(plan.solarize))


def _crop(plan: ViewPlan, shapes: Tensor, unit: Tensor) -> Tensor:
    """(V, N, 4) top, left, height and width, of (V, N, 2 attempts + 2) numbers in [0, 1)."""
    height, width = shapes[:, 0, None].double(), shapes[:, 1, None].double()
    low, high = plan.crop_scale
    # a square with a share of a wide image's area may never fit; with all of the largest square it is in the middle
    of_square = plan.crop_ratio == (1, 1) != plan.crop_scale
    whole_area = torch.minimum(height, width).square() if of_square else height * width
    area = (unit[..., :_CROP_ATTEMPTS] * (high - low) + low) * whole_area
    thin, broad = plan.crop_ratio
    logs = unit[..., _CROP_ATTEMPTS : 2 * _CROP_ATTEMPTS] * (math.log(broad) - math.log(thin)) + math.log(thin)
    ratio = logs.exp()
    heights, widths = (area / ratio).sqrt().round(), (area * ratio).sqrt().round()
    fits = (heights >= 1) & (heights <= height) & (widths >= 1) & (widths <= width)
    first, any_fits = fits.to(torch.uint8).argmax(2, keepdim=True), fits.any(2, keepdim=True)
    whole = torch.minimum(height, (width / thin).round()), torch.minimum(width, (height * broad).round())
    sides = [
        torch.where(any_fits, drawn.gather(2, first), full.clamp(min=1))
        for drawn, full in zip((heights, widths), whole, strict=True)
    ]
    corners = []
    for side, full, place in zip(sides, (height, width), unit[..., -2:].unbind(2), strict=True):
        room = full - side
        drawn = torch.minimum((place[..., None] * (room + 1)).floor(), room)
        corners.append(torch.where(any_fits, drawn, (room / 2).floor()))
    return torch.cat([*corners, *sides], 2).long()
