"""How large the tiles of a grid are: shares of a cell, so that what a paper fixed in pixels fits images of any size."""

from __future__ import annotations

from fastssl.errors import UserError

SMALLEST_TILE = 3


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
