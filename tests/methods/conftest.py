from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from fastssl import methods, models
from fastssl.data.views import make_views

# Encoders of the methods' recipes, as small as they can be for images of 16 pixels.
TINY: dict[str, dict[str, Any]] = {
    "resnet18": {"stem": "cifar", "width": 4},
    "alexnet_split": {"stem": "cifar", "width": 8},
    "vit_micro": {"patch_size": 4, "width": 32, "depth": 2, "image_size": 16},
}


@pytest.fixture
def build() -> Callable[..., methods.Method]:
    """Builds a method by name on its recipe's encoder, a tiny one; further arguments are the method's settings."""

    def build(name: str, *, seed: int = 0, **settings: Any) -> methods.Method:
        torch.manual_seed(seed)
        kind = methods.get(name)
        encoder = kind.recipe.get("encoder", "resnet18")
        return kind.build(models.get(encoder)(**TINY[encoder]), kind.Config(**settings), size=16)

    return build


@pytest.fixture
def views_of() -> Callable[..., list[Tensor]]:
    """Views of noise by a method's own plan."""

    def views_of(method: methods.Method, *, batch: int = 6, size: int = 16) -> list[Tensor]:
        generator = torch.Generator().manual_seed(0)
        images = torch.randint(256, (batch, 3, size, size), dtype=torch.uint8, generator=generator)
        return make_views(images, method.view_plan(size), generator)

    return views_of


@pytest.fixture
def descend() -> Callable[..., list[float]]:
    """Losses of 30 steps on one batch, of which all that a method draws is drawn alike."""

    def descend(method: methods.Method, views: list[Tensor], *, precision: torch.dtype = torch.float32) -> list[float]:
        optimizer = torch.optim.AdamW(method.parameters(), lr=1e-3)
        losses = []
        for step in range(30):
            optimizer.zero_grad()
            torch.manual_seed(0)
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16):
                loss = method(views)
            loss.backward()
            optimizer.step()
            method.after_step((step + 1) / 30)
            losses.append(loss.item())
        return losses

    return descend
