"""Encoders by name. A module of this package offers its encoders by a table ``ENCODERS`` of name -> builder."""

from __future__ import annotations

import copy
import importlib
import inspect
import pkgutil
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from fastssl.errors import UserError, unknown

Builder = Callable[..., nn.Module]


def _encoders() -> dict[str, Builder]:
    modules: list[Any] = [importlib.import_module(f"{__name__}.{m.name}") for m in pkgutil.iter_modules(__path__)]
    return {name: build for module in modules for name, build in getattr(module, "ENCODERS", {}).items()}


def names() -> list[str]:
    """The encoders that :func:`get` knows, sorted."""
    return sorted(_encoders())


def get(name: str) -> Builder:
    """The builder of encoder ``name``: called with its :func:`options` (for a ResNet ``stem`` and ``width``), it gives
    the encoder, an ``nn.Module`` from (N, 3, H, W) to (N, feature_dim) with an integer attribute ``feature_dim``;
    one of waveforms, as ``wave_gru``, from (N, samples).

    Raises:
        UserError: offering the nearest name, if there is none of that name.
    """
    encoders = _encoders()
    if name not in encoders:
        raise unknown("encoder", name, encoders)
    return encoders[name]


def options(name: str, *, image_size: int | None = None, **given: Any) -> dict[str, Any]:
    """All that encoder ``name`` is built with, by keyword: its own defaults, but for what is given and not None.

    Args:
        name: an encoder that :func:`get` knows.
        image_size: side of the images, in pixels; passed over where an encoder takes any size alike, as a ResNet does.
        given: values by option.
    Raises:
        UserError: for an option that the encoder does not have.
    """
    parameters = inspect.signature(get(name)).parameters.values()
    own = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}
    if image_size is not None and "image_size" in own:
        own["image_size"] = image_size
    for option, value in given.items():
        if value is not None and option not in own:
            raise UserError(f"{name} has no {option}, which was set to {value!r}; its options are {', '.join(own)}")
    return own | {option: value for option, value in given.items() if value is not None}


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


def maps(encoder: nn.Module, images: Tensor) -> Tensor:
    """The last map of ``encoder``, (N, feature_dim, h, w), for tasks that predict pixels.

    Raises:
        UserError: for an encoder that has none.
        ValueError, TypeError: for images that it does not take.
    """
    own = getattr(encoder, "maps", None)
    if own is None:
        raise UserError(f"pixels are predicted from a map, and a {type(encoder).__name__} has none: take a resnet")
    found: Tensor = own(images)
    return found


@torch.no_grad()
def map_side(encoder: nn.Module, size: int) -> int:
    """Rows of the last map of images of ``size`` x ``size`` pixels; ``encoder`` stays as it is. Raises as `maps`."""
    found = maps(copy.deepcopy(encoder).eval(), torch.zeros(1, getattr(encoder, "channels", 3), size, size))
    return int(found.shape[2])


_PROBE = 128  # pixels of a side that every encoder takes, and no stride is coarser than


def map_stride(encoder: nn.Module) -> float:
    """Pixels of the image, along a side, for each place of the last map. Raises as `maps`."""
    patch: int | None = getattr(encoder, "patch_size", None)
    return _PROBE / map_side(encoder, _PROBE) if patch is None else float(patch)
