"""What every score shares: the checks of its input, and accuracy."""

from __future__ import annotations

import torch
from torch import Tensor

from fastssl.errors import UserError


def accuracy(predicted: Tensor, labels: Tensor) -> float:
    """Share of (N,) ``labels`` that ``predicted``, (N,) or one for all, equals; in [0, 1]."""
    return int((predicted == labels).sum()) / len(labels)


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
