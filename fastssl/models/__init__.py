"""Encoders by name. A module of this package offers its encoders by a table ``ENCODERS`` of name -> builder."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from typing import Any

from torch import nn

from fastssl.errors import unknown

Builder = Callable[..., nn.Module]


def _encoders() -> dict[str, Builder]:
    modules: list[Any] = [importlib.import_module(f"{__name__}.{m.name}") for m in pkgutil.iter_modules(__path__)]
    return {name: build for module in modules for name, build in getattr(module, "ENCODERS", {}).items()}


def names() -> list[str]:
    """The encoders that :func:`get` knows, sorted."""
    return sorted(_encoders())


def get(name: str) -> Builder:
    """The builder of encoder ``name``: called with its options (for a ResNet ``stem`` and ``width``), it returns the
    encoder, an ``nn.Module`` from (N, 3, H, W) to (N, feature_dim) with an integer attribute ``feature_dim``.

    Raises:
        UserError: offering the nearest name, if there is none of that name.
    """
    encoders = _encoders()
    if name not in encoders:
        raise unknown("encoder", name, encoders)
    return encoders[name]


def feature_dim(encoder: nn.Module) -> int:
    """The length of ``encoder``'s feature vectors, by its attribute ``feature_dim``.

    Raises:
        TypeError: if it has no such integer.
    """
    dim = getattr(encoder, "feature_dim", None)
    if not isinstance(dim, int):
        raise TypeError(
            f"an encoder needs an integer attribute feature_dim, the length of its feature vectors; "
            f"{type(encoder).__name__} has {dim!r}: set encoder.feature_dim"
        )
    return dim
