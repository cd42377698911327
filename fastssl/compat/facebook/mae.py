"""facebookresearch/mae: ``from fastssl.compat.facebook.mae import forward_loss, random_masking``.

There they are methods of the model; ``norm_pix_loss``, which it holds, is an argument here.
"""

from __future__ import annotations

import math

from torch import Tensor

from fastssl import losses, ops
from fastssl.ops import _check


def random_masking(x: Tensor, mask_ratio: float) -> tuple[Tensor, Tensor, Tensor]:
    """Keeps a random share of each sample's patches (MAE, arXiv:2111.06377, section 3).

    Args:
        x: (N, L, D) embedded patches, without a class token.
        mask_ratio: the share to remove, in [0, 1); at least one patch must remain.
    Returns:
        x_masked: (N, kept, D) the patches that remain, in a random order. Differentiable.
        mask: (N, L) float32, 1 for a removed patch.
        ids_restore: (N, L) int64, where each patch stands in the shuffled order, kept ones first.
    Raises:
        TypeError, ValueError: for another shape or dtype, or a ratio outside these limits.
    """
    _check.float_tensor("random_masking", "x", x, "NLD")
    ids_keep, ids_restore, mask = ops.random_masking(x.shape[0], x.shape[1], mask_ratio, device=x.device)
    return ops.take_patches(x, ids_keep), mask, ids_restore


def forward_loss(imgs: Tensor, pred: Tensor, mask: Tensor, norm_pix_loss: bool = False) -> Tensor:
    """Mean squared error of the removed patches' pixels.

    Args:
        imgs: (N, C, H, W).
        pred: (N, L, P P C), the predicted pixels of each patch, channels last; P is taken from this shape.
        mask: (N, L), 1 for a removed patch.
        norm_pix_loss: compare with each patch's pixels less their mean, over their standard deviation.
    Returns:
        The scalar mean over removed patches, 0 without any, in float32 (float64 for float64 images).
    Raises:
        TypeError, ValueError: for other shapes or dtypes.
    """
    _check.float_tensor("forward_loss", "imgs", imgs, "NCHW")
    _check.float_tensor("forward_loss", "pred", pred, "NLD")
    channels = imgs.shape[1]
    side = math.isqrt(pred.shape[2] // max(channels, 1))
    if side < 1 or side * side * channels != pred.shape[2]:
        raise ValueError(
            f"forward_loss: pred must have P x P x {channels} numbers a patch for images {_check.shape(imgs)}; "
            f"got {_check.shape(pred)}"
        )
    return losses.mae_loss(imgs, pred, mask, patch_size=side, normalize_pixels=norm_pix_loss)
