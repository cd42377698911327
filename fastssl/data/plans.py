"""View plans: what augmentation does, written once and served by every engine."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, get_type_hints

from fastssl.errors import UserError, unknown

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

# The largest side of a view that ``fastssl.ops.augment`` makes.
LARGEST_SIZE = 32768

# Images of this side and above get SimCLR's ImageNet recipe, smaller ones its CIFAR recipe.
BLUR_FROM_SIZE = 96

# What `changed` leaves alone: how a plan is put together, and what the encoder is fed with wherever it is used.
_FIXED = frozenset({"mean", "std", "others", "name"})

# The same for all views of an image.
_ALIKE = ("interpolation", "mean", "std")


@dataclass(frozen=True)
class ViewPlan:
    """How views are made: crop, flip, rotation, colour jitter, grayscale, blur, solarization, normalisation.

    In this order; but for the four steps of colour jitter, which are torchvision's, and whose order is drawn for each
    sample. The defaults leave an image as it is.

    Args:
        size: side of a view, in pixels.
        views: how many are made of each image with these settings.
        crop_scale: bounds of the crop's area, as a share of the image's; of squares (crop_ratio (1, 1)), of the largest
            square's in the image, and all of it is the one in the middle.
        crop_ratio: bounds of the crop's width / height, drawn log-uniformly.
        interpolation: of resizing the crop, antialiased.
        flip: probability of a left-right flip.
        rot90: quarter turns against the clock, of which one is drawn.
        jitter: probability of colour jitter.
        brightness: b of a factor drawn from [max(0, 1 - b), 1 + b].
        contrast: likewise.
        saturation: likewise.
        hue: bound h, in turns of the colour wheel, of a shift drawn from [-h, h].
        grayscale: probability of dropping colour.
        blur: probability of a Gaussian blur.
        blur_sigma: bounds of its standard deviation, in pixels of the view.
        solarize: probability of inverting values from half of the range on.
        mean: subtracted from each channel of values in [0, 1].
        std: divides each channel after that.
        others: plans of the further views, which are made with settings of their own; interpolation, mean and std are
            the same for all.
        name: by which `changed` finds this part of a plan that has several; no two parts share one.

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
    name: str = ""

    @property
    def parts(self) -> tuple[ViewPlan, ...]:
        """The plans that each have settings of their own, in the order of their views."""
        return (self, *(part for plan in self.others for part in plan.parts))

    @property
    def sizes(self) -> list[int]:
        """The side of each view that is made of an image, with all settings."""
        return [part.size for part in self.parts for _ in range(part.views)]

    @property
    def total(self) -> int:
        """How many views are made of each image, with all settings."""
        return len(self.sizes)

    def __post_init__(self) -> None:
        _require(1 <= self.size <= LARGEST_SIZE, "size", self.size, f"in [1, {LARGEST_SIZE}]")
        _require(self.views >= 1, "views", self.views, "at least 1")
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
            for name in _ALIKE:
                _require(getattr(other, name) == getattr(self, name), name, getattr(other, name), "alike in all plans")
        given = [part.name for part in self.parts if part.name]
        own_fields = {field.name for field in fields(self)}
        usable = len(set(given)) == len(given) and own_fields.isdisjoint(given)
        _require(usable, "name", given, "another for each part, and no field's")


def simclr(size: int) -> ViewPlan:
    """SimCLR's two views (arXiv:2002.05709, appendix A): the ImageNet recipe from 96 pixels on, below `cifar`'s.

    Colour strength s = 1, and blur for half of the views.
    """
    return _simclr(size, strength=1.0, blur=0.5) if size >= BLUR_FROM_SIZE else cifar(size)


def cifar(size: int) -> ViewPlan:
    """SimCLR's two views of small images (arXiv:2002.05709, appendix B.9), at any size.

    Colour strength s = 0.5, and no blur, which at such sizes removes what the images have to tell.
    """
    return _simclr(size, strength=0.5, blur=0.0)


def _simclr(size: int, strength: float, blur: float) -> ViewPlan:
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
        blur=blur,
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
    """BYOL's two views (arXiv:2006.07733, appendix B): one always blurred, the other seldom, at times solarized.

    Its parts are ``first`` and ``second``.
    """
    first = replace(moco_v2(size), views=1, crop_scale=(0.08, 1.0), saturation=0.2, blur=1.0, name="first")
    return replace(first, others=(replace(first, blur=0.1, solarize=0.2, name="second"),))


def dino(size: int, local_views: int = 8) -> ViewPlan:
    """DINO's multi-crop (arXiv:2104.14294, appendix A): two large crops of ``size``, small ones of less of the image.

    The small views have 96 pixels where the large ones have 224, and the same share at other sizes, to the nearest
    multiple of 8, so that patches of 8 pixels fill them. Colours and blur are BYOL's, the resizing bicubic. Its parts
    are ``first``, ``second`` and ``local``.
    """
    whole = byol(size)
    first = replace(whole, crop_scale=(0.4, 1.0), interpolation="bicubic", others=())
    second = replace(first, blur=0.1, solarize=0.2, name="second")
    local = replace(first, size=local_size(size), crop_scale=(0.05, 0.4), blur=0.5, name="local")
    return replace(first, others=(second, replace(local, views=local_views)) if local_views else (second,))


def local_size(size: int) -> int:
    """The side of a multi-crop's small views, where the large ones have ``size`` pixels (see `dino`)."""
    return 8 * max(1, round(size * 96 / 224 / 8))


def mae(size: int) -> ViewPlan:
    """The masked autoencoder's one view (arXiv:2111.06377, section 4.1): a crop, bicubic, and a flip."""
    return ViewPlan(size=size, crop_scale=(0.2, 1.0), crop_ratio=(3 / 4, 4 / 3), interpolation="bicubic", flip=0.5)


def rotation(size: int) -> ViewPlan:
    """Four views, the k-th turned by k quarters against the clock, to be told apart (RotNet, arXiv:1803.07728).

    Each a crop of 224 pixels of 256, and half of them flipped, as its ImageNet recipe has it. Its parts are ``r0``,
    ``r90``, ``r180`` and ``r270``.
    """
    upright = ViewPlan(size=size, crop_scale=_square(224, 256), flip=0.5, name="r0")
    turned = (replace(upright, rot90=(turns,), name=f"r{90 * turns}") for turns in (1, 2, 3))
    return replace(upright, others=tuple(turned))


def jigsaw(size: int) -> ViewPlan:
    """One view, to be cut into the tiles of a puzzle (arXiv:1603.09246): 225 pixels of a square of 255.

    Three of ten lose their colours: where those are shifted against each other, as lenses do towards the borders, tells
    where in the image a tile was. What the paper does to each tile by itself is for the method to do: gap, place within
    the cell and normalisation (all in ``fastssl.ops.tiles``), and to shift the channels by a pixel or two.
    """
    return ViewPlan(size=size, crop_scale=_square(225, 255), grayscale=0.3)


def relative_patch(size: int) -> ViewPlan:
    """One view, of which two neighbouring patches are cut (arXiv:1505.05192): a third of the area and more.

    The paper's grid of 3 x 3 patches spans 384 pixels of images of 150,000 to 450,000. Against the shortcut by shifted
    colours two views of three lose theirs, as later repetitions of it do to the whole image. The paper itself drops two
    of the three channels of each patch, or projects colours: that, gap and jitter are for the method to do
    (``fastssl.ops.tiles``).
    """
    return ViewPlan(size=size, crop_scale=(1 / 3, 1.0), grayscale=2 / 3)


def colorization(size: int) -> ViewPlan:
    """One view whose colours are to be guessed, and so are left alone (arXiv:1603.08511): a crop and a flip.

    A crop of 176 pixels of 256, as the paper's training has it. ``fastssl.data.lab`` gives its lightness and colours.
    """
    return ViewPlan(size=size, crop_scale=_square(176, 256), flip=0.5)


def eval(size: int) -> ViewPlan:
    """One view for features: the whole image at ``size``, normalised as in training, nothing random."""
    return ViewPlan(size=size)


def _square(pixels: int, of: int) -> tuple[float, float]:
    """The share of the area of an image ``of`` so many pixels a side that a crop has."""
    share = (pixels / of) ** 2
    return share, share


_PRESETS = (byol, cifar, colorization, dino, drawings, eval, jigsaw, mae, moco_v2, relative_patch, rotation, simclr)
_PLANS: dict[str, Callable[[int], ViewPlan]] = {plan.__name__: plan for plan in _PRESETS}


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


def changeable(*, of_part: bool = False) -> dict[str, Any]:
    """The fields that `changed` takes, by name, with their types; ``of_part``: those that one part alone may have."""
    left_alone = _FIXED.union(_ALIKE) if of_part else _FIXED
    return {name: kind for name, kind in get_type_hints(ViewPlan).items() if name not in left_alone}


def refusal(name: str, *, of_part: bool) -> str | None:
    """Why a field of a plan, or of one part alone, cannot be changed, with its name first; None where it can."""
    if name in ("mean", "std"):
        return f"{name} cannot be set: the encoder is fed alike wherever it is used, so the preset's values stay"
    if of_part and name in _ALIKE:
        return f"{name} cannot be set by itself: set plan.{name}, which is that of all views"
    return None


def changed(plan: ViewPlan, changes: Mapping[str, Any]) -> ViewPlan:
    """``plan`` with other settings, of all its parts or of one by its name, which wins.

    ``changed(dino(224), {"flip": 0.0, "local": {"views": 6, "crop_scale": (0.05, 0.25)}})`` flips nothing, and makes
    six small views of smaller crops.

    Args:
        plan: a preset.
        changes: values by field, or by a part's name again values by field.
    Raises:
        UserError: offering the nearest name, for one that is no field or part; naming the field that is out of range.
    """
    by_part = {part.name: changes.get(part.name, {}) for part in plan.parts if part.name}
    for_all = {name: value for name, value in changes.items() if name not in by_part}
    _refuse_unknown(for_all, "plan.", by_part)
    for name, own in by_part.items():
        _refuse_unknown(own, f"plan.{name}.")
    if not changes:
        return plan
    parts = [
        _replaced(_replaced(part, "plan.", {**for_all, "others": ()}), f"plan.{part.name}.", by_part.get(part.name, {}))
        for part in plan.parts
    ]
    return _replaced(parts[0], "plan.", {"others": tuple(parts[1:])})


def _refuse_unknown(changes: object, where: str, further: Iterable[str] = ()) -> None:
    if not isinstance(changes, Mapping):
        raise UserError(f"{where[:-1]} needs settings of the form name: value; got {changes!r}")
    known = [f"{where}{name}" for name in (*changeable(of_part=where != "plan."), *further)]
    for name in changes:
        if f"{where}{name}" not in known:
            reason = refusal(name, of_part=where != "plan.")
            raise UserError(f"{where}{reason}") if reason else unknown("setting", f"{where}{name}", known)


def _replaced(plan: ViewPlan, where: str, values: Mapping[str, Any]) -> ViewPlan:
    try:
        return replace(plan, **values)
    except ValueError as error:
        raise UserError(f"{where}{str(error).removeprefix('ViewPlan: ')}") from error


def _require(holds: bool, field: str, value: object, wanted: str) -> None:
    if not holds:
        raise ValueError(f"ViewPlan: {field} must be {wanted}; got {value}")
