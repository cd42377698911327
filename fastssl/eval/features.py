"""Features of images under a frozen encoder, and the checks every score makes of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from fastssl.data import plans
from fastssl.data.views import make_views
from fastssl.errors import UserError


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """``module`` in evaluation mode; afterwards each of its parts is back in its own mode, frozen ones included."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training


@torch.no_grad()
def extract(
    encoder: nn.Module,
    images: Tensor,
    *,
    size: int,
    batch_size: int = 256,
    device: torch.device | str | None = None,
) -> Tensor:
    """Features of whole images (``plans.evaluation``), the encoder in evaluation mode and afterwards in its own again.

    Args:
        encoder: (B, 3, size, size) float32 to (B, F).
        images: (N, 3, S, S) uint8; resized, if S is not ``size``.
        size: side of what the encoder sees, in pixels.
        batch_size: images a forward pass.
        device: where the encoder lies; None is the device of its first parameter.
    Returns:
        (N, F) float32 on the CPU.
    Raises:
        ValueError, TypeError: for images of another shape or dtype, or none.
    """
    if device is None:
        device = next((p.device for p in encoder.parameters()), torch.device("cpu"))
    plan = plans.evaluation(size)
    generator = torch.Generator()  # which the plan has no use for
    features = []
    with evaluating(encoder):
        for batch in torch.split(images, batch_size):
            (view,) = make_views(batch.to(device), plan, generator)
            features.append(encoder(view).float().cpu())
    return torch.cat(features)


def check_features(what: str, features: Tensor) -> None:
    """Refuses features that cannot be scored: anything but finite floating-point (N, F), N >= 1.

    Raises:
        ValueError, TypeError: beginning with ``what`` and naming what was received.
        UserError: if a feature is NaN or infinite: the encoder has diverged.
    """
    if features.ndim != 2 or len(features) == 0:
        raise ValueError(f"{what}: features must be (N, F) with N >= 1; got {tuple(features.shape)}")
    if not features.is_floating_point():
        raise TypeError(f"{what}: features must be floating-point; got {features.dtype}")
    bad = int((~features.isfinite()).any(dim=1).sum())
    if bad:
        raise UserError(
            f"{what}: {bad} of {len(features)} feature vectors hold NaN or infinity; "
            f"the encoder has diverged: train it again at a lower learning rate"
        )


def check_labelled(what: str, features: Tensor, labels: Tensor, num_classes: int) -> None:
    """:func:`check_features`, and refuses labels that are not (N,) int64 in [0, num_classes).

    Raises:
        ValueError, TypeError: beginning with ``what`` and naming what was received.
    """
    check_features(what, features)
    if labels.shape != features.shape[:1]:
        raise ValueError(
            f"{what}: features (N, F) and labels (N,) must agree on N; "
            f"got {tuple(features.shape)} and {tuple(labels.shape)}"
        )
    if labels.dtype != torch.int64:
        raise TypeError(f"{what}: labels must be int64; got {labels.dtype}")
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= num_classes:
        raise ValueError(f"{what}: labels must lie in [0, {num_classes}); got {low} to {high}")
