"""The masked autoencoder's loss: the removed patches' pixels."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastssl.ops import _check


def patchify(images: Tensor, patch_size: int) -> Tensor:
    """(N, C, H, W) as (N, L, P P C): patches from left to right and from top to bottom, channels last within each.

    Images of any dtype, uint8 too: numbers are moved, and not changed.

    Raises:
        TypeError: for images that are no tensor, or a ``patch_size`` that is no integer.
        ValueError: for another shape, or sides that patches of ``patch_size`` do not fill.
    """
    if _check.whole("patchify", "patch_size", patch_size) < 1:
        raise ValueError(f"patchify: patch_size must be at least 1; got {patch_size}")
    if _check.tensor("patchify", "images", images).dim() != 4:
        raise ValueError(f"patchify: images must have shape (N, C, H, W); got {_check.shape(images)}")
    return _patches("patchify", images, patch_size)


def unpatchify(patches: Tensor, patch_size: int, grid: tuple[int, int]) -> Tensor:
    """The images (N, C, rows P, columns P) that ``patchify`` made (N, rows columns, P P C) patches of, of any dtype.

    Raises:
        TypeError: for patches that are no tensor, or a ``patch_size`` that is no integer.
        ValueError: for patches that are not ``grid``, (rows, columns), of whole pixels.
    """
    rows, columns = grid
    pixels = _check.whole("unpatchify", "patch_size", patch_size) ** 2
    shape = _check.tensor("unpatchify", "patches", patches).shape
    if len(shape) != 3 or shape[1] != rows * columns or pixels < 1 or shape[2] % pixels:
        raise ValueError(
            f"unpatchify: patches must be (N, {rows * columns}, {pixels} C) for a grid of {rows} x {columns} and "
            f"patches of {patch_size} pixels; got {_check.shape(patches)}"
        )
    channels = shape[2] // pixels
    split = patches.reshape(shape[0], rows, columns, patch_size, patch_size, channels)
    return split.permute(0, 5, 1, 3, 2, 4).reshape(shape[0], channels, rows * patch_size, columns * patch_size)


def _patches(owner: str, images: Tensor, patch_size: int) -> Tensor:
    n, c, height, width = images.shape
    if height % patch_size or width % patch_size:
        raise ValueError(f"{owner}: patches of {patch_size} pixels do not fill images of {height} x {width}")
    rows, columns = height // patch_size, width // patch_size
    split = images.reshape(n, c, rows, patch_size, columns, patch_size)
    return split.permute(0, 2, 4, 3, 5, 1).reshape(n, rows * columns, patch_size**2 * c)


def mae_loss(
    images: Tensor, prediction: Tensor, mask: Tensor, *, patch_size: int, normalize_pixels: bool = True
) -> Tensor:
    """Mean squared error of the removed patches' pixels (MAE, arXiv:2111.06377, section 3). See ``MAELoss``.

    Args:
        images: (N, C, H, W).
        prediction: (N, L, P P C) in the order of ``patchify``.
        mask: (N, L), 1 = removed; bool, integer or floating-point, whose numbers are weights.
    Returns:
        The scalar mean over removed patches, 0 without any, in float32 (float64 if images or prediction are).
    Raises:
        TypeError: for images or a prediction that are no floating-point tensors, or a complex mask.
        ValueError: for shapes that do not belong together, sides that patches do not fill, or two devices.
    """
    owner = "MAELoss"
    target = _target(owner, images, patch_size, normalize_pixels)
    _check.float_tensor(owner, "prediction", prediction, ("N", "L", "P P C"))
    if _check.tensor(owner, "mask", mask).is_complex():
        raise TypeError(f"{owner}: mask must be bool or real; got {mask.dtype}")
    if prediction.shape != target.shape:
        raise ValueError(
            f"{owner}: prediction must be {_check.shape(target)} for images {_check.shape(images)}; "
            f"got {_check.shape(prediction)}"
        )
    if mask.shape != target.shape[:2]:
        raise ValueError(f"{owner}: mask must be {tuple(target.shape[:2])}; got {_check.shape(mask)}")
    for name, x in (("prediction", prediction), ("mask", mask)):
        _check.one_device(owner, ("images", images), (name, x))
    error = (prediction - target).square().mean(-1)  # at least in float32, which the target is
    removed = mask.to(error.dtype)
    total = removed.sum()
    return (error * removed).sum() / total.where(total != 0, 1.0)


@torch.no_grad()
def _target(owner: str, images: Tensor, patch_size: int, normalize_pixels: bool) -> Tensor:
    """What a prediction is compared with: (N, L, P P C), in float32 at least."""
    if _check.whole(owner, "patch_size", patch_size) < 1:
        raise ValueError(f"{owner}: patch_size must be at least 1; got {patch_size}")
    target = _patches(owner, _check.float_tensor(owner, "images", images, "NCHW"), patch_size)
    target = target.to(torch.promote_types(target.dtype, torch.float32))
    if not normalize_pixels:
        return target
    mean, deviation = _moments(target)
    return (target - mean) / deviation


def _moments(patches: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each patch's pixels, (N, L, 1) both."""
    # variance with N - 1, and this epsilon under the root, as in the paper's code: scores depend on it
    variance, mean = torch.var_mean(patches, dim=-1, keepdim=True)
    return mean, (variance + 1e-6).sqrt()


class MAELoss(nn.Module):
    """Mean squared error of the removed patches' pixels (MAE, arXiv:2111.06377, section 3).

    Args:
        patch_size: side P of a patch in pixels.
        normalize_pixels: compare with each patch's pixels less their mean, over their standard deviation: the paper's
            better variant.
    Raises:
        ValueError: if patch_size is below 1.
    """

    def __init__(self, patch_size: int, *, normalize_pixels: bool = True) -> None:
        super().__init__()
        if _check.whole("MAELoss", "patch_size", patch_size) < 1:
            raise ValueError(f"MAELoss: patch_size must be at least 1; got {patch_size}")
        self.patch_size, self.normalize_pixels = patch_size, normalize_pixels

    def forward(self, images: Tensor, prediction: Tensor, mask: Tensor) -> Tensor:
        """images: (N, C, H, W); prediction: (N, L, P P C); mask: (N, L), 1 = removed. Returns the scalar.

        Raises what ``mae_loss`` does.
        """
        return mae_loss(images, prediction, mask, patch_size=self.patch_size, normalize_pixels=self.normalize_pixels)

    def target(self, images: Tensor) -> Tensor:
        """What the prediction is compared with: (N, L, P P C), in float32 at least.

        Raises:
            TypeError: for images that are no floating-point tensor: bytes are to be scaled first.
            ValueError: for another shape, or sides that patches do not fill.
        """
        return _target("MAELoss", images, self.patch_size, self.normalize_pixels)

    @torch.no_grad()
    def pixels(self, images: Tensor, prediction: Tensor) -> Tensor:
        """What a prediction looks like: the inverse of ``target``, (N, L, P P C), in the dtype of ``target``.

        Normalised pixels say nothing of a patch's brightness and contrast: those are taken from ``images``.

        Raises what ``target`` does.
        """
        target = _target("MAELoss", images, self.patch_size, False)
        if not self.normalize_pixels:
            return prediction.to(target.dtype)
        mean, deviation = _moments(target)
        return prediction * deviation + mean

    def extra_repr(self) -> str:
        return f"patch_size={self.patch_size}, normalize_pixels={self.normalize_pixels}"
