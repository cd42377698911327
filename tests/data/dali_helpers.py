"""What the tests of DALI's engine share: files that are bytes in memory, and whether DALI is here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from fastssl.data import dali
from fastssl.data.plans import ViewPlan
from fastssl.data.sources import Entry, Listing
from fastssl.errors import UserError

try:
    dali.require()
    MISSING = ""
except UserError as error:
    MISSING = str(error)
needs_dali = pytest.mark.skipif(bool(MISSING), reason=MISSING)

RAW = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
GEOMETRY = dict(jitter=0.0, grayscale=0.0, blur=0.0, solarize=0.0)


def files(contents: Sequence[bytes]) -> Listing:
    return Listing([Entry(f"{i}.jpg", lambda data=data: data) for i, data in enumerate(contents)])


def photo(seed: int, height: int = 60, width: int = 80) -> Image.Image:
    """Smooth, with some noise, as photographs are."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (height // 12, width // 12, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)).astype(int)
    return Image.fromarray((smooth + rng.integers(-8, 9, smooth.shape)).clip(0, 255).astype(np.uint8))


def photos(count: int, form: str = "PNG", **shape: int) -> list[Image.Image]:
    return [photo(i, **shape) for i in range(count)]


def pixels(images: Sequence[Image.Image]) -> Tensor:
    return torch.stack([torch.tensor(np.asarray(image)) for image in images]).permute(0, 3, 1, 2).contiguous()


def bare(plan: ViewPlan) -> ViewPlan:
    """Crops, flips and turns alone."""
    return replace(plan, **GEOMETRY, others=tuple(bare(other) for other in plan.others))
