"""View plans: what augmentation does, written once and served by every engine."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from fastssl.errors import unknown

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

# Images of this side and above get SimCLR's ImageNet recipe, smaller ones its CIFAR recipe.
BLUR_FROM_SIZE = 96


@dataclass(frozen=True)
class ViewPlan:
    """How views are made: crop, flip, rotation, colour jitter, grayscale, blur, solarization, normalisation.

    In this order; but for the four steps of colour jitter, whose order is drawn for each sample. ``brightness``,
    ``contrast`` and ``saturation`` are torchvision's: a factor drawn from [max(0, 1 - b), 1 + b]. ``hue`` is a shift
    drawn from [-hue, hue], in turns of the colour wheel. The defaults leave an image as it is.

    Args:
        size: side of a view, in pixels.
        views: how many are made of each image with these settings.
        crop_scale: bounds of the crop's area, as a share of the image's.
        crop_ratio: bounds of the crop's width / height, drawn log-uniformly.
        interpolation: of resizing the crop, antialiased.
        flip: probability of a left-right flip.
        rot90: quarter turns against the clock, of which one is drawn.
        jitter: probability of colour jitter.
        grayscale: probability of dropping colour.
        blur: probability of a Gaussian blur.
        blur_sigma: bounds of its standard deviation, in pixels of the view.
        solarize: probability of inverting values from half of the range on.
        mean: subtracted from each channel of values in [0, 1].
        std: divides each channel after that.
        others: plans of the further views, which are made with settings of their own; interpolation, mean and std are
            the same for all.

    Raises:
        ValueError: naming the field that is out of range.
    """

    size: int
    views: int = 1
    crop_scale: tuple[float, float] = (1.0, 1.0)
    crop_ratio: tuple[float, float] = (1.0, 1.0)
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    flip: float = 0.0
    rot90: tuple[int, ...] = (0,)
    jitter: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    grayscale: float = 0.0
    blur: float = 0.0
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    solarize: float = 0.0
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    others: tuple[ViewPlan, ...] = ()

    @property
    def parts(self) -> tuple[ViewPlan, ...]:
        """The plans that each have settings of their own, in the order of their views."""
        return (self, *(part for plan in self.others for part in plan.parts))

    @property
    def total(self) -> int:
        """How many views are made of each image, with all settings."""
        return sum(part.views for part in self.parts)

    def __post_init__(self) -> None:
        _require(self.size >= 1 and self.views >= 1, "size and views", (self.size, self.views), "at least 1")
        for name in ("flip", "jitter", "grayscale", "blur", "solarize"):
            _require(0 <= getattr(self, name) <= 1, name, getattr(self, name), "a probability in [0, 1]")
        for name in ("brightness", "contrast", "saturation"):
            _require(0 <= getattr(self, name) < math.inf, name, getattr(self, name), "0 or more")
        _require(0 <= self.hue <= 0.5, "hue", self.hue, "in [0, 0.5] turns")
        low, high = self.crop_scale
        _require(0 < low <= high <= 1, "crop_scale", self.crop_scale, "0 < low <= high <= 1")
        for name in ("crop_ratio", "blur_sigma"):
            low, high = getattr(self, name)
            _require(0 < low <= high < math.inf, name, (low, high), "0 < low <= high")
        _require(
            self.interpolation in ("bilinear", "bicubic"), "interpolation", self.interpolation, "bilinear or bicubic"
        )
        turns = self.rot90
        _require(len(turns) > 0 and set(turns) <= {0, 1, 2, 3}, "rot90", turns, "one or more of 0, 1, 2 and 3")
        _require(min(self.std) > 0, "std", self.std, "above 0")
        for other in self.others:
            for name in ("interpolation", "mean", "std"):
                _require(getattr(other, name) == getattr(self, name), name, getattr(other, name), "alike in all plans")


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


def moco_v2(size: int) -> ViewPlan:
    """MoCo v2's two views (arXiv:2003.04297, section 3): SimCLR's, with less jitter and crops from a fifth on."""
    return ViewPlan(
        size=size,
        views=2,
        crop_scale=(0.2, 1.0),
        crop_ratio=(3 / 4, 4 / 3),
        flip=0.5,
        jitter=0.8,
        brightness=0.4,
        contrast=0.4,
        saturation=0.4,
        hue=0.1,
        grayscale=0.2,
        blur=0.5,
    )


def byol(size: int) -> ViewPlan:
    """BYOL's two views (arXiv:2006.07733, appendix B): one always blurred, the other seldom, at times solarized."""
    first = replace(moco_v2(size), views=1, crop_scale=(0.08, 1.0), saturation=0.2, blur=1.0)
    return replace(first, others=(replace(first, blur=0.1, solarize=0.2),))


def dino(size: int, local_views: int = 8) -> ViewPlan:
    """DINO's multi-crop (arXiv:2104.14294, appendix A): two large crops of ``size``, small ones of less of the image.

    The small views have 96 pixels where the large ones have 224, and the same share at other sizes. Colours and blur
    are BYOL's, the resizing bicubic.
    """
    whole = byol(size)
    first = replace(whole, crop_scale=(0.4, 1.0), interpolation="bicubic", others=())
    second = replace(first, blur=0.1, solarize=0.2)
    local = replace(first, size=max(1, round(size * 96 / 224)), crop_scale=(0.05, 0.4), blur=0.5)
    return replace(first, others=(second, replace(local, views=local_views)) if local_views else (second,))


def mae(size: int) -> ViewPlan:
    """The masked autoencoder's one view (arXiv:2111.06377, section 4.1): a crop, bicubic, and a flip."""
    return ViewPlan(size=size, crop_scale=(0.2, 1.0), crop_ratio=(3 / 4, 4 / 3), interpolation="bicubic", flip=0.5)


def rotation(size: int) -> ViewPlan:
    """Four views, the k-th turned by k quarters against the clock, to be told apart (RotNet, arXiv:1803.07728).

    Each a crop of 224 pixels of 256, and half of them flipped, as its ImageNet recipe has it.
    """
    share = (224 / 256) ** 2
    upright = ViewPlan(size=size, crop_scale=(share, share), flip=0.5)
    return replace(upright, others=tuple(replace(upright, rot90=(turns,)) for turns in (1, 2, 3)))


def evaluation(size: int) -> ViewPlan:
    """One view for features: the whole image at ``size``, normalised as in training, nothing random."""
    return ViewPlan(size=size)


_PLANS: dict[str, Callable[[int], ViewPlan]] = {
    plan.__name__: plan for plan in (byol, dino, drawings, evaluation, mae, moco_v2, rotation, simclr)
}


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
