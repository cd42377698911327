"""Colorization's loss: cross-entropy with soft labels of few classes, and weights by rarity."""

from __future__ import annotations

import torch
from torch import Tensor

from fastssl.ops import _check


def soft_cross_entropy(logits: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
    """-sum_k weights_k log softmax(logits)[ids_k] of each pixel (arXiv:1603.08511, equation 2, without its weight).

    The log-probabilities of all classes are not stored: it is the log-sum-exp less the labels' logits.

    Args:
        logits: (N, B, H, W) floating-point.
        ids: (N, K, H, W) int64 in [0, B): the classes that are not 0, as of ``fastssl.ops.encode_ab``.
        weights: (N, K, H, W), summing to 1 over K.
    Returns:
        (N, H, W), in float32 (float64 for float64 logits).
    Raises:
        TypeError: for logits or weights that are not floating-point tensors, or ids that are not int64.
        ValueError: naming the shapes, if they do not belong together.
    """
    owner = "soft_cross_entropy"
    _check.float_tensor(owner, "logits", logits, "NBHW")
    _check.float_tensor(owner, "weights", weights, "NKHW")
    if ids.dtype != torch.int64:
        raise TypeError(f"{owner}: ids must be int64; got {ids.dtype}")
    alike = (logits.shape[0], *logits.shape[2:]) == (ids.shape[0], *ids.shape[2:])
    if ids.shape != weights.shape or not alike:
        raise ValueError(
            f"{owner}: logits (N, B, H, W), ids and weights (N, K, H, W) must agree; "
            f"got {_check.shape(logits)}, {_check.shape(ids)} and {_check.shape(weights)}"
        )
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return logits.logsumexp(dim=1) - (weights * logits.gather(1, ids)).sum(dim=1)


def rebalancing_weights(prior: Tensor, bins: Tensor, *, mix: float = 0.5, sigma: float = 5.0) -> Tensor:
    """What each colour counts, by its rarity (arXiv:1603.08511, equation 4).

    The prior is smoothed by a Gaussian, mixed with the uniform distribution and inverted; the weights have mean 1 under
    the smoothed prior.

    Args:
        prior: (B,) floating-point, the share of the pixels of each bin, summing to 1.
        bins: (B, 2), as ``fastssl.ops.gamut_bins()``.
        mix: lambda, the share of the uniform distribution, in (0, 1].
        sigma: of the Gaussian, in units of the bins, > 0.
    Returns:
        (B,), dtype of ``prior``.
    Raises:
        TypeError: for a prior or bins that are not floating-point tensors.
        ValueError: for a prior that does not belong to the bins or does not sum to 1, or numbers out of their range.
    """
    owner = "rebalancing_weights"
    _check.float_tensor(owner, "prior", prior, "B")
    _check.float_tensor(owner, "bins", bins, "B2")
    if len(prior) != len(bins) or abs(float(prior.sum()) - 1) > 1e-3 or bool((prior < 0).any()):
        raise ValueError(
            f"{owner}: prior must have a share for each of {len(bins)} bins, together 1; "
            f"got {_check.shape(prior)} with a sum of {float(prior.sum()):.3g}"
        )
    if not 0 < mix <= 1 or not sigma > 0:
        raise ValueError(f"{owner}: mix must lie in (0, 1] and sigma above 0; got {mix} and {sigma}")
    points = bins.double()
    spread = (-(points[:, None] - points).square().sum(dim=2) / (2 * sigma**2)).exp()
    smooth = (spread / spread.sum(dim=0)) @ prior.double()  # what a bin gives to all others sums to its share
    weights = 1 / ((1 - mix) * smooth + mix / len(bins))
    return (weights / (smooth * weights).sum()).to(prior.dtype)
