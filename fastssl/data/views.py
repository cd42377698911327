"""Views of a batch of images: every augmentation of a plan, in plain torch, vectorised over samples.

Parameters are drawn per sample, from the generator alone; only the order of the four jitter steps is drawn once for a
view of the whole batch. Cropping, antialiased resizing and flipping are one linear map, as is the blur: both are
``rows @ image @ columns^T`` with small banded matrices made for each sample, and so run as matrix products.
Pixels lie as three planes (3, B, H, W) in between, so that every colour step runs over contiguous memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from fastssl.data.plans import ViewPlan

# On a CPU the batch is worked through in pieces whose planes stay in the cache: this many pixels a plane.
_CACHED_PIXELS = 1 << 17
_CROP_ATTEMPTS = 10
_LUMA = (0.299, 0.587, 0.114)


def make_views(images: Tensor, plan: ViewPlan, generator: torch.Generator) -> list[Tensor]:
    """Draws ``plan.views`` views of each image.

    Args:
        images: (B, 3, H, W) uint8, on any device.
        generator: the only source of randomness, on any device; a CPU generator gives the same draws for images on
            any device.

    Returns:
        ``plan.views`` tensors (B, 3, size, size) float32 on the images' device, normalised by the plan's mean and std.

    Raises:
        TypeError: if the images are not uint8.
        ValueError: naming the shape, if it is not (B, 3, H, W) with at least one pixel.
    """
    if images.dtype != torch.uint8:
        raise TypeError(f"make_views: images must be uint8; got {images.dtype}")
    if images.ndim != 4 or images.shape[1] != 3 or 0 in images.shape:
        raise ValueError(f"make_views: images must be (B, 3, H, W), none of them 0; got {tuple(images.shape)}")
    return [_view(images, plan, generator) for _ in range(plan.views)]


def _view(images: Tensor, plan: ViewPlan, generator: torch.Generator) -> Tensor:
    batch, _, height, width = images.shape
    draw = _Draw(batch, generator, images.device)
    top, left, crop_height, crop_width = draw.crop(plan, height, width)
    flipped = draw.happens(plan.flip)
    jitter = draw.jitter(plan)
    gray = draw.happens(plan.grayscale)
    blurred = draw.happens(plan.blur)
    sigma = draw.uniform(*plan.blur_sigma)

    views = images.new_empty((batch, 3, plan.size, plan.size), dtype=torch.float32)
    chunk = max(1, _CACHED_PIXELS // plan.size**2) if images.device.type == "cpu" else batch
    for start in range(0, batch, chunk):
        part = slice(start, start + chunk)
        rows = _resize_matrix(top[part], crop_height[part], height, plan.size)
        columns = _resize_matrix(left[part], crop_width[part], width, plan.size)
        columns = torch.where(flipped[part, None, None], columns.flip(1), columns)
        planes = _resample(images[part], rows, columns)
        for step, amount in jitter:
            step(planes, amount[part, None, None])
        _drop_colour(planes, gray[part])
        _blur(planes, blurred[part], sigma[part])
        for channel, (mean, std) in enumerate(zip(plan.mean, plan.std, strict=True)):
            torch.sub(planes[channel], mean, out=views[part, channel]).div_(std)
    return views


class _Draw:
    """Per-sample random parameters, drawn where the generator lives and moved to where the images are."""

    def __init__(self, batch: int, generator: torch.Generator, device: torch.device) -> None:
        self.batch, self.generator, self.device = batch, generator, device

    def uniform(self, low: float, high: float, *shape: int) -> Tensor:
        """(B, *shape) float32, uniform in [low, high)."""
        unit = torch.rand(self.batch, *shape, generator=self.generator, device=self.generator.device)
        return unit.mul_(high - low).add_(low).to(self.device)

    def happens(self, probability: float) -> Tensor:
        """(B,) bool, true with the given probability."""
        return self.uniform(0.0, 1.0) < probability

    def crop(self, plan: ViewPlan, height: int, width: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Top, left, height and width, each (B,), of a random resized crop inside a (height, width) image.

        As torchvision: the first of ten draws of area and aspect that fits, else the largest central crop of an
        allowed aspect. Unlike it, crops are not rounded to whole pixels.
        """
        area = self.uniform(*plan.crop_scale, _CROP_ATTEMPTS) * (height * width)
        low, high = plan.crop_ratio
        ratio = self.uniform(math.log(low), math.log(high), _CROP_ATTEMPTS).exp()
        heights, widths = (area / ratio).sqrt(), (area * ratio).sqrt()
        fits = (heights <= height) & (widths <= width)
        first = fits.to(torch.uint8).argmax(1, keepdim=True)
        any_fits = fits.any(1)
        crop_height = torch.where(any_fits, heights.gather(1, first)[:, 0], min(height, width / low))
        crop_width = torch.where(any_fits, widths.gather(1, first)[:, 0], min(width, height * high))
        down, right = (torch.where(any_fits, self.uniform(0.0, 1.0), 0.5) for _ in range(2))
        return down * (height - crop_height), right * (width - crop_width), crop_height, crop_width

    def jitter(self, plan: ViewPlan) -> list[tuple[Callable[[Tensor, Tensor], None], Tensor]]:
        """The jitter steps in the order drawn, each with its (B,) amounts: neutral where the sample has no jitter."""
        jittered = self.happens(plan.jitter)
        steps: list[tuple[Callable[[Tensor, Tensor], None], Tensor]] = []
        for step, strength in (
            (_brightness, plan.brightness),
            (_contrast, plan.contrast),
            (_saturation, plan.saturation),
        ):
            steps.append((step, torch.where(jittered, self.uniform(max(0.0, 1 - strength), 1 + strength), 1.0)))
        steps.append((_hue, torch.where(jittered, self.uniform(-plan.hue, plan.hue), 0.0)))
        order = torch.randperm(len(steps), generator=self.generator, device=self.generator.device).tolist()
        strengths = (plan.brightness, plan.contrast, plan.saturation, plan.hue)
        return [steps[i] for i in order if plan.jitter > 0 and strengths[i] > 0]


def _resize_matrix(start: Tensor, extent: Tensor, pixels: int, size: int) -> Tensor:
    """(B, size, pixels) weights that resize [start, start + extent) of a line of ``pixels`` to ``size``.

    Bilinear with antialias, as Pillow's: a triangle as wide as the larger of an input and an output pixel, cut at
    the border of the image, each row summing to 1.
    """
    step = extent / size
    outputs = torch.arange(size, device=start.device) + 0.5
    inputs = torch.arange(pixels, device=start.device) + 0.5
    centres = start[:, None] + outputs * step[:, None]
    reach = step.clamp(min=1.0)[:, None, None]
    weights = (centres[:, :, None] - inputs).abs_().div_(reach).neg_().add_(1.0).clamp_(min=0.0)
    return weights.div_(weights.sum(2, keepdim=True))


def _resample(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """(B, 3, H, W) uint8 to planes (3, B, size, size) in [0, 1]: rows @ image @ columns^T for each channel."""
    planes = rows.new_empty((3, len(images), rows.shape[1], columns.shape[1]))
    columns = columns.mT / 255
    for channel in range(3):
        torch.bmm(rows.bmm(images[:, channel].float()), columns, out=planes[channel])
    return planes


def _luma(planes: Tensor) -> Tensor:
    """(B, size, size) grey value of each pixel, by the weights of ITU-R 601-2."""
    red, green, blue = _LUMA
    return (planes[0] * red).add_(planes[1], alpha=green).add_(planes[2], alpha=blue)


def _brightness(planes: Tensor, factor: Tensor) -> None:
    planes.mul_(factor).clamp_(0.0, 1.0)


def _contrast(planes: Tensor, factor: Tensor) -> None:
    means = planes.mean((2, 3), keepdim=True)
    planes.mul_(factor).add_(_luma(means) * (1 - factor)).clamp_(0.0, 1.0)


def _saturation(planes: Tensor, factor: Tensor) -> None:
    gray = _luma(planes).mul_(1 - factor)
    planes.mul_(factor).add_(gray).clamp_(0.0, 1.0)


def _hue(planes: Tensor, turn: Tensor) -> None:
    """Turns the hue of HSV, exactly: value and chroma stay, so only the sector has to be found.

    With the hue in sixths of a turn, channel n of (5, 3, 1) for red, green, blue is
    value - chroma * clamp(min(k, 4 - k), 0, 1), where k = (n + hue) mod 6, and min(k, 4 - k) = 2 - |k - 2|.
    """
    red, green, blue = planes
    value = planes.amax(0)
    chroma = value - planes.amin(0)
    # Where there is no chroma, hue has no meaning and no effect: any divisor but 0 will do.
    scale = chroma.clamp(min=torch.finfo(chroma.dtype).tiny).reciprocal_()
    sixths = torch.where(
        value == red,
        (green - blue).mul_(scale),
        torch.where(value == green, (blue - red).mul_(scale).add_(2.0), (red - green).mul_(scale).add_(4.0)),
    )
    hue = sixths.div_(6.0).add_(turn)
    for channel, offset in enumerate((5.0, 3.0, 1.0)):
        # A whole turn more keeps the sum positive, where its fractional part is its remainder.
        k = (hue + (offset / 6 + 1)).frac_().mul_(6.0)
        weight = k.sub_(2.0).abs_().neg_().add_(2.0).clamp_(0.0, 1.0)
        torch.addcmul(value, chroma, weight, value=-1, out=planes[channel])


def _drop_colour(planes: Tensor, dropped: Tensor) -> None:
    chosen = dropped.nonzero()[:, 0]
    if len(chosen):
        planes[:, chosen] = _luma(planes[:, chosen]).expand(3, -1, -1, -1)


def _blur(planes: Tensor, blurred: Tensor, sigma: Tensor) -> None:
    """Gaussian blur of the chosen samples; the kernel spans a tenth of the side, as SimCLR's; borders are mirrored."""
    chosen = blurred.nonzero()[:, 0]
    if len(chosen):
        matrix = _blur_matrix(sigma[chosen], planes.shape[3])
        for plane in planes:
            plane[chosen] = matrix.bmm(plane[chosen]).bmm(matrix.mT)


def _blur_matrix(sigma: Tensor, size: int) -> Tensor:
    """(B, size, size) weights that blur a line of ``size`` pixels, each sample with its own ``sigma`` in pixels."""
    radius = min(max(1, size // 20), size - 1)
    taps = torch.arange(-radius, radius + 1, device=sigma.device)
    kernel = torch.softmax(-(taps**2) / (2 * sigma[:, None] ** 2), dim=1)
    last = size - 1
    sources = last - (last - (taps[:, None] + torch.arange(size, device=sigma.device)).abs()).abs()
    placement = F.one_hot(sources, size).to(kernel.dtype)
    return (kernel @ placement.flatten(1)).view(-1, size, size)
