"""How large the tiles of a grid are: shares of a cell, so that what a paper fixed in pixels fits images of any size.

And what is done to their colours, that patches be not told by them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastssl.errors import UserError

SMALLEST_TILE = 3
# Standard deviation of what replaces a channel, those that stay having 1 (arXiv:1505.05192, section 3.1).
NOISE = 0.01


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


def dropped_channels(patches: Tensor) -> Tensor:
    """Leaves one channel of each patch, drawn from torch's global generator; the others are noise.

    Args:
        patches: (..., 3, h, w).
    """
    kept = torch.randint(3, (*patches.shape[:-3], 1, 1, 1), device=patches.device)
    channel = torch.arange(3, device=patches.device).view(3, 1, 1)
    return torch.where(channel == kept, patches, NOISE * torch.randn_like(patches))
