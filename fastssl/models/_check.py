"""What every encoder asks of its images."""

from __future__ import annotations

from torch import Tensor


def images(owner: str, x: Tensor, channels: int = 3) -> None:
    """Refuses what is not (N, channels, H, W) of a floating-point dtype.

    Raises:
        ValueError, TypeError: naming the shape or dtype received.
    """
    if x.ndim != 4 or x.shape[1] != channels:
        raise ValueError(f"{owner}: images must be (N, {channels}, H, W); got {tuple(x.shape)}")
    if not x.is_floating_point():
        raise TypeError(f"{owner}: images must be floating-point and normalised; got {x.dtype}")
