"""Parameters of views for tests, and what torchvision makes of them.

python tests/ops/view_helpers.py      writes torchvision_views.npz anew, where torchvision is installed
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL.Image import Resampling
from torch import Tensor

from fastssl.ops import ViewParams
from fastssl.ops.augment import blur_radius  # type: ignore[attr-defined]

FILE = Path(__file__).with_name("torchvision_views.npz")
HEIGHT, WIDTH = 21, 26
ORDERS = [[0, 1, 2, 3], [3, 2, 1, 0], [2, 0, 3, 1], [1, 3, 0, 2]]
WHOLE = (0, 0, HEIGHT, WIDTH)
SQUARE = (1, 3, 20, 20)  # shown in 20 pixels: nothing is resized
CROPS = [(WHOLE, 9), (WHOLE, 30), ((0, 0, 5, 7), 13), ((14, 20, 7, 6), 3), ((20, 25, 1, 1), 2), (SQUARE, 20)]


def case(**changes: Any) -> dict[str, Any]:
    return {"crop": SQUARE, "size": 20, "bicubic": False, **changes}


# what differs from a crop shown as it is; "step ..." change one thing alone
CASES: dict[str, dict[str, Any]] = {
    **{
        f"{'bicubic' if bicubic else 'bilinear'} {crop} to {size}": case(crop=crop, size=size, bicubic=bicubic)
        for bicubic in (False, True)
        for crop, size in CROPS
    },
    **{
        f"step {i} by {factor}": case(factors=tuple(factor if j == i else (1.0, 1.0, 1.0, 0.0)[j] for j in range(4)))
        for i, factors in enumerate(((0.0, 0.4, 1.7), (0.0, 0.4, 1.8), (0.0, 0.1, 0.4, 1.8), (-0.5, -0.13, 0.07, 0.37)))
        for factor in factors
    },
    "step grayscale": case(gray=True),
    "step solarize": case(solarize=True),
    **{f"step blur {sigma}": case(sigma=sigma) for sigma in (0.1, 0.6, 2.0)},
    "wide blur": case(crop=WHOLE, size=40, sigma=1.7),
    "flip": case(crop=WHOLE, size=11, flip=True),
    **{f"all in order {order}": case(
        crop=(2, 1, 17, 23), size=24, flip=i % 2 == 0, rot90=i, order=order, factors=(1.2, 0.7, 1.4, (-1) ** i * 0.1),
        sigma=0.9, solarize=i > 1,
    ) for i, order in enumerate(ORDERS)},
    "all and grayscale": case(crop=(2, 1, 17, 23), size=24, factors=(0.6, 1.3, 1.7, 0.2), gray=True, sigma=1.3),
}  # fmt: skip


def image() -> Tensor:
    """(3, H, W) uint8: smooth, with flat parts, edges, greys and primaries."""
    y, x = torch.meshgrid(torch.arange(HEIGHT), torch.arange(WIDTH), indexing="ij")
    smooth = torch.stack([128 + 127 * torch.sin(x / 4 + c) * torch.cos(y / (3 + c)) for c in range(3)]).byte()
    smooth[:, 4:8, 4:9] = 90
    smooth[:, 10:14, 8:12] = torch.tensor([255, 0, 0], dtype=torch.uint8).view(3, 1, 1)
    smooth[:, 15:, 18:] = torch.randint(256, (3, 6, 8), generator=torch.Generator().manual_seed(0), device="cpu").byte()
    return smooth


def neutral(views: int, count: int, height: int, width: int, **changes: Any) -> ViewParams:
    """Whole images as they are, but for ``changes``: values for all samples, or (count, ...) or (views, count, ...)."""
    params = {
        "crop": [0, 0, height, width],
        "flip": False,
        "rot90": 0,
        "order": ORDERS[0],
        "factors": [1.0, 1.0, 1.0, 0.0],
        "gray": False,
        "sigma": 0.0,
        "solarize": False,
    }
    assert changes.keys() <= params.keys()
    made = {}
    for name, default in params.items():
        value = torch.as_tensor(changes.get(name, default))
        last = (4,) if name in ("crop", "order", "factors") else ()
        made[name] = value.to(torch.get_default_device()).expand(views, count, *last).clone()
    return ViewParams(**made)


def random_params(views: int, count: int, height: int, width: int, seed: int = 0) -> ViewParams:
    """Everything drawn, without regard to any plan."""
    there = torch.get_default_device()
    with torch.device("cpu"):
        drawn = _random_params(views, count, height, width, seed)
    return ViewParams(*(x.to(there) for x in drawn))


def _random_params(views: int, count: int, height: int, width: int, seed: int) -> ViewParams:
    generator = torch.Generator().manual_seed(seed)
    shape = (views, count)

    def whole(limit: int | Tensor) -> Tensor:
        return (torch.rand(shape, generator=generator) * limit).long()

    tall, wide = 1 + whole(height), 1 + whole(width)
    crop = torch.stack([whole(height - tall + 1), whole(width - wide + 1), tall, wide], 2)
    factors = torch.rand(*shape, 4, generator=generator) * 2
    factors[..., 3] = factors[..., 3] / 2 - 0.5
    still = torch.rand(*shape, 4, generator=generator) < 0.3
    factors = torch.where(still, torch.tensor([1.0, 1.0, 1.0, 0.0]), factors)
    order = torch.rand(*shape, 4, generator=generator).argsort(2)
    sigma = torch.where(whole(2) > 0, 0.1 + 2 * torch.rand(shape, generator=generator), 0.0)
    flip, gray, solarize = whole(2) > 0, whole(4) == 0, whole(2) > 0
    return ViewParams(crop, flip, whole(4), order, factors, gray, sigma, solarize)


def params_of(drawn: dict[str, Any]) -> ViewParams:
    """Of a case of ``CASES``: one view of one image."""
    return neutral(1, 1, HEIGHT, WIDTH, **{key: x for key, x in drawn.items() if key not in ("size", "bicubic")})


def by_torchvision(functional: Any, x: Any, drawn: dict[str, Any]) -> Any:
    """A case by ``torchvision.transforms.v2.functional``, in the type of ``x`` (3, H, W), or as Pillow's image."""
    floating = isinstance(x, Tensor) and x.is_floating_point()
    top, left, height, width = drawn["crop"]
    size, how = drawn["size"], Resampling.BICUBIC if drawn["bicubic"] else Resampling.BILINEAR
    x = functional.resize(functional.crop(x, top, left, height, width), [size, size], int(how), antialias=True)
    x = x.clamp(0, 1) if floating else x
    x = functional.horizontal_flip(x) if drawn.get("flip") else x
    x = x.rot90(drawn["rot90"], (1, 2)) if drawn.get("rot90") else x
    changes: list[Callable[[Any, float], Any]] = [
        functional.adjust_brightness,
        functional.adjust_contrast,
        functional.adjust_saturation,
        functional.adjust_hue,
    ]
    if "factors" in drawn:
        for step in drawn.get("order", ORDERS[0]):
            x = changes[step](x, drawn["factors"][step])
    x = functional.rgb_to_grayscale(x, 3) if drawn.get("gray") else x
    if drawn.get("sigma"):
        taps = 2 * blur_radius(size) + 1
        x = functional.gaussian_blur(x, [taps, taps], [drawn["sigma"]] * 2)
    return functional.solarize(x, 0.5 if floating else 128) if drawn.get("solarize") else x


def torchvisions(functional: Any) -> dict[str, Tensor]:
    """Every case in float32, as "float <case>"; resizing and single steps in uint8 too, as "bytes <case>".

    But for bicubic: its bytes are cut off at 0 and 255 between the directions, where a cubic overshoots.
    """
    found = {}
    for name, drawn in CASES.items():
        found[f"float {name}"] = by_torchvision(functional, image().float() / 255, drawn)
        if not name.startswith(("all", "wide", "bicubic")):
            found[f"bytes {name}"] = by_torchvision(functional, image(), drawn)
    return found


def committed() -> dict[str, Tensor]:
    with np.load(FILE) as file:
        return {name: torch.from_numpy(file[name]) for name in file.files}


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2]))
    from benchmarks import rivals

    made = torchvisions(rivals.load("torchvision.transforms.v2.functional"))
    np.savez_compressed(FILE, **{name: x.contiguous().numpy() for name, x in made.items()})
