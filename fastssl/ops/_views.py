"""What the augmentation is given: images as bytes, and the parameters of each view of each; with their checks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fastssl.ops import _check

STEPS = ("brightness", "contrast", "saturation", "hue")
NEUTRAL = (1.0, 1.0, 1.0, 0.0)  # factors that change nothing
_LARGEST = 2**15  # a view of it has 12 GB


class ViewParams(NamedTuple):
    """What is done to each of N images for each of V views; all tensors on one device.

    Args:
        crop: (V, N, 4) int64, the top, left, height and width of the part that is shown, in whole pixels of the image.
        flip: (V, N) bool, whether left and right change places.
        rot90: (V, N) int64, quarter turns against the clock, in [0, 4), after the flip.
        order: (V, N, 4) int64, in which the steps of colour jitter are taken: 0 brightness, 1 contrast, 2 saturation,
            3 hue.
        factors: (V, N, 4) float32, of brightness, contrast and saturation, finite and 0 or more, of which 1 changes
            nothing, and the turn of the hue, in [-0.5, 0.5] turns, of which 0 changes nothing.
        gray: (V, N) bool, whether colour is dropped.
        sigma: (V, N) float32, standard deviation of the Gaussian blur in pixels of the view; 0 for none.
        solarize: (V, N) bool, whether values from half of the range on are inverted.
    """

    crop: Tensor
    flip: Tensor
    rot90: Tensor
    order: Tensor
    factors: Tensor
    gray: Tensor
    sigma: Tensor
    solarize: Tensor


class PackedImages(NamedTuple):
    """N images of any sizes in one buffer.

    Args:
        pixels: (bytes) uint8; image n is the ``heights[n] * widths[n] * 3`` bytes from ``offsets[n]`` on: rows of
            pixels of red, green and blue, as decoders write them.
        offsets: (N) int64.
        heights: (N) int64, in pixels.
        widths: (N) int64.
    """

    pixels: Tensor
    offsets: Tensor
    heights: Tensor
    widths: Tensor


_FIELDS = {
    "crop": (torch.int64, 4),
    "flip": (torch.bool, None),
    "rot90": (torch.int64, None),
    "order": (torch.int64, 4),
    "factors": (torch.float32, 4),
    "gray": (torch.bool, None),
    "sigma": (torch.float32, None),
    "solarize": (torch.bool, None),
}


def check_images(op: str, images: object) -> tuple[Tensor, Tensor | None]:
    """As the op takes them: (N, 3, H, W) and nothing, or the pixels of packed images and their (N, 3) places."""
    if isinstance(images, PackedImages):
        return _packed(op, images)
    x = _check.tensor(op, "images", images)
    _require_bytes(op, "images", x)
    if x.dim() != 4 or 3 not in (x.shape[1], x.shape[3]) or x.numel() == 0:
        raise ValueError(
            f"{op}: images must have shape (N, 3, H, W) or (N, H, W, 3), none of them 0; got {_check.shape(x)}"
        )
    return (x if x.shape[1] == 3 else x.movedim(3, 1)), None


def _packed(op: str, images: PackedImages) -> tuple[Tensor, Tensor]:
    pixels = _check.tensor(op, "pixels", images.pixels)
    _require_bytes(op, "pixels", pixels)
    if pixels.dim() != 1:
        raise ValueError(f"{op}: pixels must have shape (bytes); got {_check.shape(pixels)}")
    count = len(images.offsets) if isinstance(images.offsets, Tensor) and images.offsets.dim() == 1 else 0
    if count == 0:
        raise ValueError(f"{op}: offsets must be a tensor (N) with N > 0; got {_told(images.offsets)}")
    columns = [
        _check.index_tensor(op, name, getattr(images, name), count, pixels.device)
        for name in ("offsets", "heights", "widths")
    ]
    return pixels.contiguous(), torch.stack(columns, 1)


def _require_bytes(op: str, name: str, x: Tensor) -> None:
    if x.dtype != torch.uint8:
        raise TypeError(f"{op}: {name} must be uint8; got {x.dtype}")


def _told(value: object) -> str:
    return _check.shape(value) if isinstance(value, Tensor) else type(value).__name__


def check_params(op: str, params: object, count: int, device: torch.device) -> ViewParams:
    """``params`` must be ViewParams of ``count`` images on ``device``; what they hold is checked where it is read."""
    if not isinstance(params, ViewParams):
        raise TypeError(f"{op}: params must be ViewParams; got {type(params).__name__}")
    views = len(params.crop) if isinstance(params.crop, Tensor) and params.crop.dim() == 3 else 1
    for name, (dtype, last) in _FIELDS.items():
        x = _check.tensor(op, name, getattr(params, name))
        if x.dtype != dtype:
            raise TypeError(f"{op}: {name} must be {str(dtype)[6:]}; got {x.dtype}")
        wanted = (views, count) if last is None else (views, count, last)
        if tuple(x.shape) != wanted or views == 0:
            raise ValueError(
                f"{op}: {name} must have shape ({', '.join(map(str, ('V', *wanted[1:])))}), with V > 0 views alike for "
                f"all parameters; got {_check.shape(x)}"
            )
        if x.device != device:
            raise ValueError(f"{op}: {name} must be on {device}; got {x.device}")
    return params


def check_sizes(op: str, sizes: object, views: int) -> list[int]:
    """The side of each view: ``sizes`` must be one integer, or one for each view."""
    given = list(sizes) if isinstance(sizes, Sequence) else [sizes] * views
    found = [_check.whole(op, "sizes", size) for size in given]
    if len(found) != views:
        raise ValueError(f"{op}: sizes must be one integer, or one for each of {views} views; got {len(found)}")
    for size in found:
        if not 1 <= size <= _LARGEST:
            raise ValueError(f"{op}: sizes must be in [1, {_LARGEST}]; got {size}")
    return found


def check_normalization(op: str, mean: object, std: object) -> tuple[list[float], list[float]]:
    """Three finite numbers each; those of ``std`` above 0."""
    found = []
    for name, values in (("mean", mean), ("std", std)):
        if not isinstance(values, (tuple, list)) or len(values) != 3:
            raise ValueError(f"{op}: {name} must be three numbers; got {values!r}")
        found.append([_check.number(op, name, value) for value in values])
    for value in found[0]:
        if not abs(value) < torch.inf:
            raise ValueError(f"{op}: mean must be finite; got {value}")
    return found[0], [_check.positive(op, "std", value) for value in found[1]]


def refuse_outside(op: str, images: Tensor, places: Tensor | None, params: ViewParams) -> None:
    """What the tensors hold: known only when the op runs. Waits for the device."""
    if places is None:
        shapes = torch.tensor(images.shape[2:], device=images.device).expand(images.shape[0], 2)
    else:
        _refuse_places(op, images, places)
        shapes = places[:, 1:]
    height, width = shapes.unbind(1)
    top, left, tall, wide = params.crop.unbind(2)
    inside = (tall >= 1) & (tall <= height) & (top >= 0) & (top <= height - tall)
    inside &= (wide >= 1) & (wide <= width) & (left >= 0) & (left <= width - wide)
    if not inside.all():
        view, image = (~inside).nonzero()[0].tolist()
        raise ValueError(
            f"{op}: crop must be top, left, height and width of a part of its image; got "
            f"{params.crop[view, image].tolist()} of image {image}, whose height and width are {shapes[image].tolist()}"
        )
    _check.in_range(op, "rot90", params.rot90, 4)
    _check.in_range(op, "order", params.order, 4)
    each_once = (1 << params.order).sum(2) == 0b1111
    if not each_once.all():
        raise ValueError(f"{op}: order must hold 0, 1, 2 and 3 once each; got {params.order[~each_once][0].tolist()}")
    for name, values, low, high in (
        ("the factors of brightness, contrast and saturation", params.factors[..., :3], 0.0, torch.inf),
        ("the turn of the hue", params.factors[..., 3], -0.5, 0.5),
        ("sigma", params.sigma, 0.0, torch.inf),
    ):
        within = (values >= low) & (values <= high) & (values < torch.inf)
        if not within.all():
            wanted = "in [-0.5, 0.5]" if low else "finite and 0 or more"
            raise ValueError(f"{op}: {name} must be {wanted}; got {float(values[~within][0])}")


def _refuse_places(op: str, pixels: Tensor, places: Tensor) -> None:
    offsets, heights, widths = places.unbind(1)
    room = len(pixels) - offsets
    # by division: products of what is given here may not fit 64 bits
    inside = (offsets >= 0) & (heights >= 1) & (widths >= 1) & (heights <= room // (3 * widths.clamp(1, 2**60)))
    inside &= widths <= 2**60
    if not inside.all():
        image = int((~inside).nonzero()[0])
        raise ValueError(
            f"{op}: offsets, heights and widths must name parts of {len(pixels)} bytes; got "
            f"{places[image].tolist()} for image {image}"
        )
