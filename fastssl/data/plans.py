"""View plans: what augmentation does, written once and served by every engine."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from fastssl.errors import unknown

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

# Images of this side and above get SimCLR's ImageNet recipe, smaller ones its CIFAR recipe.
BLUR_FROM_SIZE = 96


@dataclass(frozen=True)
class ViewPlan:
    """How views are made of an image: crop, flip, colour jitter, grayscale, blur, normalisation, in this order.

    ``brightness``, ``contrast`` and ``saturation`` are torchvision's: a factor drawn from [max(0, 1 - b), 1 + b].
    ``hue`` is a shift drawn from [-hue, hue], in turns of the colour wheel. The defaults leave an image as it is.

    Args:
        size: side of a view, in pixels.
        views: how many are made of each image.
        crop_scale: bounds of the crop's area, as a share of the image's.
        crop_ratio: bounds of the crop's width / height, drawn log-uniformly.
        flip: probability of a left-right flip.
        jitter: probability of colour jitter.
        grayscale: probability of dropping colour.
        blur: probability of a Gaussian blur.
        blur_sigma: bounds of its standard deviation, in pixels of the view.
        mean: subtracted from each channel of values in [0, 1].
        std: divides each channel after that.

    Raises:
        ValueError: naming the field that is out of range.
    """

    size: int
    views: int = 1
    crop_scale: tuple[float, float] = (1.0, 1.0)
    crop_ratio: tuple[float, float] = (1.0, 1.0)
    flip: float = 0.0
    jitter: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    grayscale: float = 0.0
    blur: float = 0.0
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD

    def __post_init__(self) -> None:
        _require(self.size >= 1 and self.views >= 1, "size and views", (self.size, self.views), "at least 1")
        for name in ("flip", "jitter", "grayscale", "blur"):
            _require(0 <= getattr(self, name) <= 1, name, getattr(self, name), "a probability in [0, 1]")
        for name in ("brightness", "contrast", "saturation"):
            _require(0 <= getattr(self, name) < math.inf, name, getattr(self, name), "0 or more")
        _require(0 <= self.hue <= 0.5, "hue", self.hue, "in [0, 0.5] turns")
        low, high = self.crop_scale
        _require(0 < low <= high <= 1, "crop_scale", self.crop_scale, "0 < low <= high <= 1")
        for name in ("crop_ratio", "blur_sigma"):
            low, high = getattr(self, name)
            _require(0 < low <= high < math.inf, name, (low, high), "0 < low <= high")
        _require(min(self.std) > 0, "std", self.std, "above 0")


def simclr(size: int) -> ViewPlan:
    """SimCLR's two views (arXiv:2002.05709, appendix A; colour strength s and blur by the size of the images).

    From 96 pixels on, the ImageNet recipe: s = 1, blur for half of the views. Below, the CIFAR recipe of appendix B.9:
    s = 0.5, and no blur, which at such sizes removes what the images have to tell.
    """
    large = size >= BLUR_FROM_SIZE
    strength = 1.0 if large else 0.5
    return ViewPlan(
        size=size,
        views=2,
        crop_scale=(0.08, 1.0),
        crop_ratio=(3 / 4, 4 / 3),
        flip=0.5,
        jitter=0.8,
        brightness=0.8 * strength,
        contrast=0.8 * strength,
        saturation=0.8 * strength,
        hue=0.2 * strength,
        grayscale=0.2,
        blur=0.5 if large else 0.0,
    )


def drawings(size: int) -> ViewPlan:
    """SimCLR's two views, kinder to drawings and icons on a plain ground, where colour is part of what is drawn.

    Crops of a fifth of the area at least, for a smaller one is often nothing but ground; colour changed in three views
    of ten, and seldom taken away.
    """
    return replace(simclr(size), crop_scale=(0.2, 1.0), jitter=0.3, grayscale=0.05)


def evaluation(size: int) -> ViewPlan:
    """One view for features: the whole image at ``size``, normalised as in training, nothing random."""
    return ViewPlan(size=size)


_PLANS: dict[str, Callable[[int], ViewPlan]] = {plan.__name__: plan for plan in (drawings, evaluation, simclr)}


def names() -> list[str]:
    """The names of all plans."""
    return sorted(_PLANS)


def get(name: str) -> Callable[[int], ViewPlan]:
    """The plan called ``name``: a function from the side of a view to its ``ViewPlan``.

    Raises:
        UserError: offering the nearest name, if there is none of that name.
    """
    if name not in _PLANS:
        raise unknown("view plan", name, _PLANS)
    return _PLANS[name]


def _require(holds: bool, field: str, value: object, wanted: str) -> None:
    if not holds:
        raise ValueError(f"ViewPlan: {field} must be {wanted}; got {value}")
