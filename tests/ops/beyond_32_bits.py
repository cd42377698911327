"""What the tests of sizes that 32 bits do not count share: each has an exact result, and takes little memory.

Ops whose result is as large as what 32 bits do not count have none, for it would be over 4 GB: the colours, the masks,
``encode_ab``, ``sinkhorn_knopp`` and ``ema_update_``.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

# one kernel of each device: the others differ in what they do with a tile, not in which tiles there are
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def coded(*counts: int) -> tuple[Tensor, list[Tensor]]:
    """Eight unit vectors in float64, and for each count which of them its rows are, drawn at random: sums over all
    pairs of rows are then sums over pairs of vectors, weighted by how many rows each has."""
    generator = torch.Generator().manual_seed(0)
    codes = normalize(torch.randn(8, 4, generator=generator, dtype=torch.float64), dim=1)
    return codes, [torch.randint(8, (count,), generator=generator) for count in counts]


def how_many(code: Tensor) -> Tensor:
    """Rows of each of the eight vectors."""
    return torch.bincount(code, minlength=8).double()


NEAR = torch.tensor([1.0, 0.8, 0.6])


def needles(length: int) -> tuple[Tensor, Tensor, Tensor]:
    """Six directions (6, 4), a haystack (length, 4), and the places (6, 3) in it of each direction's neighbours.

    Their similarities are NEAR: the nearest is at the haystack's end, the next in its middle, the last at its
    beginning. Every other row's is 0 or below.
    """
    axes = torch.eye(4)
    directions, haystack = torch.cat([axes[:3], -axes[:3]]), axes[3].repeat(length, 1)
    places = torch.tensor([length - 6, length // 2, 0]) + torch.arange(6)[:, None]
    haystack[places] = NEAR[:, None] * directions[:, None] + (1 - NEAR.square()).sqrt()[:, None] * axes[3]
    return directions, haystack, places


def zeros(*shape: int, dtype: torch.dtype, device: object = "cpu") -> Tensor:
    """On a CPU they take up no memory but where they are written: all that is only read is one page of the system's."""
    if torch.device(device).type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    return torch.from_numpy(np.zeros(math.prod(shape) * dtype.itemsize, np.uint8)).view(dtype).view(shape)
