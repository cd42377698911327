"""How large the tiles of a grid are: shares of a cell, so that what a paper fixed in pixels fits images of any size.

And patches that each have colours of their own, that they be not told by them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastssl.errors import UserError

SMALLEST_TILE = 3
_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601


def tile_side(task: str, side: int, grid: int, gap: float) -> int:
    """Side of the square tiles, in pixels, that are cut of an image's cells.

    Args:
        task: who asks, for the error.
        side: of the square image.
        grid: cells in a row, and rows.
        gap: share of a cell's side that its tile leaves free, rounded to pixels.
    Raises:
        UserError: if fewer than `SMALLEST_TILE` pixels are left.
    """
    cell = side // grid
    tile = cell - round(gap * cell)
    if tile < SMALLEST_TILE:
        raise UserError(
            f"{task} cuts {grid} x {grid} tiles of {SMALLEST_TILE} pixels or more, and images of {side} pixels give "
            f"tiles of {max(tile, 0)} with a gap of {gap:.3g} of the cell: take a larger image_size or a smaller gap"
        )
    return tile


def overlapping_sides(task: str, side: int, grid: int, overlap: float, jitter: float) -> tuple[int, int]:
    """Sides, in pixels, of the square patches that overlap their neighbours, and of what is cut out of each.

    Args:
        task: who asks, for the error.
        side: of the square image.
        grid: patches in a row, and rows.
        overlap: share of a patch's side that its neighbour has too, in [0, 1).
        jitter: share of it that is cut off, rounded to pixels, a pixel at least unless 0.
    Raises:
        UserError: if fewer than `SMALLEST_TILE` pixels are left.
    """
    patch = round(side / (1 + (grid - 1) * (1 - overlap)))
    left = patch - max(round(jitter * patch), int(jitter > 0))
    if left < SMALLEST_TILE:
        raise UserError(
            f"{task} cuts {grid} x {grid} patches of {SMALLEST_TILE} pixels or more, and images of {side} pixels give "
            f"patches of {max(left, 0)}: take a larger image_size, a smaller grid or more overlap"
        )
    return patch, left


def with_own_colors(patches: Tensor, strength: float, grey: float) -> Tensor:
    """Patches of an image as if each were of another photo, in brightness, contrast and colour balance.

    What a crop's patches have in common tells them from those of other images, and nothing of what they show; so they
    are changed one by one (CPC v2, arXiv:1905.09272, section 4.1, "patch-based augmentation").

    Args:
        patches: (..., 3, h, w) floating-point, normalised.
        strength: standard deviation of a patch's mean, and of the logarithm of its contrast; half as much comes to each
            channel by itself.
        grey: share of the patches that lose their colour.
    Returns:
        Of the same shape. Draws from torch's global generators.
    """
    of_patch, of_channel = (*patches.shape[:-3], 1, 1, 1), (*patches.shape[:-3], 3, 1, 1)

    def drawn() -> Tensor:
        whole = torch.randn(of_patch, device=patches.device)
        return strength * (whole + torch.randn(of_channel, device=patches.device) / 2)

    luma = patches.new_tensor(_LUMA).view(3, 1, 1)
    lost = torch.rand(of_patch, device=patches.device) < grey
    patches = torch.where(lost, (luma * patches).sum(-3, keepdim=True), patches)
    mean = patches.mean((-3, -2, -1), keepdim=True)
    return (patches - mean) * drawn().exp() + mean + drawn()
