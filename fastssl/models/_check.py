"""What every encoder asks of its images."""

from __future__ import annotations

from torch import Tensor


def images(owner: str, x: Tensor) -> None:
    """Refuses what is not (N, 3, H, W) of a floating-point dtype.

    Raises:
        ValueError, TypeError: naming the shape or dtype received.
    """
    if x.ndim != 4 or x.shape[1] != 3:
        raise ValueError(f"{owner}: images must be (N, 3, H, W); got {tuple(x.shape)}")
    if not x.is_floating_point():
        raise TypeError(f"{owner}: images must be floating-point and normalised; got {x.dtype}")
