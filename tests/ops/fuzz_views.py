"""A valid call of the augmentation, drawn at random: images in any layout or packed, and parameters in their ranges."""

from __future__ import annotations

from typing import Any

import torch
from fuzz_helpers import Drawn
from torch import Tensor

from fastssl.ops import PackedImages, ViewParams
from fastssl.ops.augment import reference  # type: ignore[attr-defined]


def augment(drawn: Drawn) -> dict[str, Any]:
    steady = Drawn(drawn.draw, wild=False)  # parameters are checked: none is wild
    views, n, height, width = drawn.size(most=3), drawn.size(most=5), drawn.size(most=33), drawn.size(most=67)
    shape, within = (views, n), lambda limit: steady.integers((views, n), limit)
    tall, wide = within(height) + 1, within(width) + 1
    corner = [within(limit) % (limit - side + 1) for limit, side in ((height, tall), (width, wide))]
    still = torch.tensor([1.0, 1.0, 1.0, 0.0])
    factors = steady.numbers((views, n, 4), torch.float32, 0, 0.5) + still * steady.pick([0.0, 0.5, 1.0])
    params = ViewParams(
        crop=steady.laid_out(torch.stack([*corner, tall, wide], 2)),
        flip=within(2) > 0,
        rot90=within(4),
        order=steady.permutations(views * n, 4).reshape(views, n, 4),
        factors=steady.laid_out(torch.where(steady.integers((views, n, 4), 2) > 0, factors, still)),
        gray=within(2) > 0,
        sigma=steady.numbers(shape, torch.float32, 0, steady.pick([0.0, 2.0, 100.0])),
        solarize=within(2) > 0,
    )
    images: Tensor | PackedImages = drawn.integers((n, 3, height, width), 256).byte()
    if drawn.chance():
        places = torch.arange(n) * 3 * height * width
        sides = (torch.full((n,), side) for side in (height, width))
        images = PackedImages(drawn.laid_out(images.movedim(1, 3).flatten()), places, *sides)
    elif drawn.chance():
        images = drawn.laid_out(images) if height == 3 or drawn.chance() else images.movedim(1, 3)
    sizes = [drawn.size(most=65) for _ in range(views)]
    return {
        "images": images,
        "params": params,
        "sizes": sizes[0] if drawn.chance() else sizes,
        "mean": [drawn.number(-1, 1) for _ in range(3)],
        "std": [drawn.number(0.1, 2) for _ in range(3)],
        "interpolation": drawn.pick(["bilinear", "bicubic"]),
        "dtype": drawn.dtype(),
        "channels_last": drawn.chance(),
    }


def viewed(call: dict[str, Any], got: dict[str, Tensor]) -> None:
    """Every value near the formula's in float64, and rounded once."""
    images, places = call["images"], None
    if isinstance(images, PackedImages):
        images, places = images.pixels, torch.stack(images[1:], 1)
    elif images.shape[1] != 3:
        images = images.movedim(3, 1)
    sizes = call["sizes"] if isinstance(call["sizes"], list) else [call["sizes"]] * len(call["params"].crop)
    settings = (call["mean"], call["std"], call["interpolation"] == "bicubic", torch.float64, False)
    wanted = reference(images, places, *call["params"], sizes, *settings)
    for i, want in enumerate(wanted):
        view = got[f"result {i}"]
        atol = 1e-4 / min(call["std"])
        torch.testing.assert_close(view.double(), want, rtol=2 * torch.finfo(view.dtype).eps, atol=atol)
