"""Views as colours: from what encoders are fed with to sRGB and CIELAB, and back."""

from __future__ import annotations

import torch
from torch import Tensor

from fastssl.data.plans import IMAGENET_MEAN, IMAGENET_STD
from fastssl.ops import lab_to_rgb, rgb_to_lab

# An image none of whose a and b go beyond it counts as grey, as in the authors' code of colorization.
GREY = 5.0


def _statistics(views: Tensor) -> tuple[Tensor, Tensor]:
    if views.ndim != 4 or views.shape[1] != 3:
        raise ValueError(f"views must be (N, 3, H, W), in colour; got {tuple(views.shape)}")
    mean, std = (torch.tensor(values, device=views.device).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    return mean, std


def to_rgb(views: Tensor) -> Tensor:
    """sRGB in [0, 1] of (N, 3, H, W) floating-point views, which are normalised by ImageNet's mean and deviation.

    Raises:
        ValueError: naming the shape, if it is another.
    """
    mean, std = _statistics(views)
    return views * std + mean


def from_rgb(rgb: Tensor) -> Tensor:
    """The inverse of :func:`to_rgb`. Raises as it does."""
    mean, std = _statistics(rgb)
    return (rgb - mean) / std


def to_lab(views: Tensor) -> Tensor:
    """(N, 3, H, W) CIELAB of views, as ``fastssl.ops.rgb_to_lab`` has it. Raises as :func:`to_rgb` does."""
    return rgb_to_lab(to_rgb(views))


def from_lab(lab: Tensor) -> Tensor:
    """Views of (N, 3, H, W) CIELAB; colours that sRGB does not have are clamped to it."""
    return from_rgb(lab_to_rgb(lab))


def grey(lightness: Tensor) -> Tensor:
    """Views that show lightness alone, (N, 3, H, W) of (N, 1, H, W) in [0, 100]."""
    without = lightness.new_zeros(len(lightness), 2, *lightness.shape[2:])
    return from_lab(torch.cat([lightness, without], dim=1))


def has_colour(lab: Tensor) -> Tensor:
    """(N,) bool: which of (N, 3, H, W) images are not grey."""
    return (lab[:, 1:].abs() > GREY).flatten(1).any(dim=1)


def without_colour(views: Tensor) -> Tensor:
    """(N, 3, H, W) views, shown in grey. Raises as :func:`to_rgb` does."""
    return grey(to_lab(views)[:, :1])
