from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from fastssl import methods, models
from fastssl.data.views import make_views


@pytest.fixture
def build() -> Callable[..., methods.Method]:
    """Builds a method by name on a tiny ResNet; further arguments are the method's settings."""

    def build(name: str, *, seed: int = 0, **settings: Any) -> methods.Method:
        torch.manual_seed(seed)
        kind = methods.get(name)
        return kind(models.get("resnet18")(stem="cifar", width=4), kind.Config(**settings))

    return build


@pytest.fixture
def views_of() -> Callable[..., list[Tensor]]:
    """Views of noise by a method's own plan."""

    def views_of(method: methods.Method, *, batch: int = 6, size: int = 16) -> list[Tensor]:
        generator = torch.Generator().manual_seed(0)
        images = torch.randint(256, (batch, 3, size, size), dtype=torch.uint8, generator=generator)
        return make_views(images, method.view_plan(size), generator)

    return views_of
