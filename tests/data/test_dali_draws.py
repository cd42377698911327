"""Both engines draw from the same distributions: told by images that show where a pixel was and what became of it."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from dali_helpers import RAW, bare, files, needs_dali, pixels
from image_files import encode
from PIL import Image
from torch import Tensor

from fastssl.data import plans
from fastssl.data.dali import DaliLoader
from fastssl.data.plans import ViewPlan
from fastssl.data.views import make_views

MANY = 600


def ramp(side: int = 256) -> Image.Image:
    """Red tells the column and green the row of a pixel."""
    line = np.arange(side, dtype=np.uint8)
    return Image.fromarray(np.stack([*np.meshgrid(line, line), np.zeros((side, side), np.uint8)], 2).astype(np.uint8))


def where(view: Tensor) -> dict[str, Tensor]:
    """What a view of `ramp` shows: area, aspect and centre of its crop, and whether it is flipped."""
    size = view.shape[2]
    inner = slice(size // 4, 3 * size // 4)  # away from the edges, where filters differ

    def extent(line: Tensor) -> Tensor:
        steps = line[:, inner].diff(dim=1).mean(1) * 255
        return steps * size

    across, down = extent(view[:, 0].mean(1)), extent(view[:, 1].mean(2))
    middle = (255 * view[:, :2]).mean((2, 3))
    return {
        "area": across.abs() * down,
        "aspect": across.abs() / down,
        "column": middle[:, 0],
        "row": middle[:, 1],
        "flipped": (across < 0).double(),
    }


def coloured(image: Image.Image, setting: str, strength: float, seed: int, engine: str) -> Tensor:
    """(MANY, 3) the mean colour of the left half of views that one step of jitter changed."""
    plan = ViewPlan(size=8, jitter=0.8, **RAW, **{setting: strength})
    images = pixels([image]).expand(MANY, -1, -1, -1)
    if engine == "native":
        (view,) = make_views(images, plan, torch.Generator().manual_seed(seed))
    else:
        with DaliLoader(files([encode(image)] * MANY), plan, MANY, seed) as loader:
            ((view,),) = loader.epoch(0)
    return view[..., :4].mean((2, 3)).double()


def distance(a: Tensor, b: Tensor) -> float:
    """Kolmogorov and Smirnov's: the largest between two samples' distribution functions."""
    at = torch.cat([a, b]).unique()
    shares = [torch.searchsorted(x.double().sort().values, at.double(), right=True) / len(x) for x in (a, b)]
    return float((shares[0] - shares[1]).abs().max())


LIMIT = 1.95 * math.sqrt(2 / MANY)  # one in a thousand pairs of samples is farther apart, if both are drawn alike


@needs_dali
def test_both_engines_draw_the_same_crops() -> None:
    plan = replace(bare(plans.simclr(32)), views=1, **RAW)
    with DaliLoader(files([encode(ramp())] * MANY), plan, MANY, seed=1) as loader:
        ((mine,),) = loader.epoch(0)
    (theirs,) = make_views(pixels([ramp()]).expand(MANY, -1, -1, -1), plan, torch.Generator().manual_seed(2))
    found, expected = where(mine), where(theirs)
    far = {name: distance(found[name], expected[name]) for name in found}
    assert not {name: far[name] for name in far if far[name] > LIMIT}
    assert found["area"].min() >= 0.07 * 256**2
    assert found["area"].max() <= 1.03 * 256**2
    assert found["flipped"].mean() == pytest.approx(0.5, abs=0.1)


@needs_dali
@pytest.mark.parametrize(
    ("setting", "strength"), [("brightness", 0.8), ("contrast", 0.8), ("saturation", 0.8), ("hue", 0.2)]
)
def test_both_engines_draw_the_same_jitter(setting: str, strength: float) -> None:
    image = Image.new("RGB", (8, 8), (120, 60, 30))
    image.paste((40, 90, 100), (4, 0, 8, 8))
    mine, theirs = (coloured(image, setting, strength, seed, engine) for seed, engine in ((1, "dali"), (2, "native")))
    for channel in range(3):
        assert distance(mine[:, channel], theirs[:, channel]) <= LIMIT
    assert mine.std(0).max() > 0.02
