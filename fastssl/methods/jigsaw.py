"""Jigsaw: in which order do the shuffled tiles of an image lie? (Noroozi and Favaro, arXiv:1603.09246).

Recipe:
    fastssl pretrain jigsaw --data clipart --image_size 96 --stem cifar --width 16
    fastssl pretrain jigsaw --config benchmarks/recipes/cifar10/jigsaw.yaml --data cifar10
        CIFAR-10 on two CPU cores: 6.4 minutes, kNN 31.7 % (untrained 30.4 %); docs/scores.md.
    fastssl pretrain jigsaw --config benchmarks/recipes/imagenette/jigsaw.yaml --data imagenette128
        Imagenette on two CPU cores: 5.1 minutes, kNN 37.7 % (untrained 31.7 %); docs/scores.md.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from itertools import permutations

import torch
from torch import Tensor, nn

from fastssl.data import plans
from fastssl.data.tiling import tile_side
from fastssl.errors import UserError
from fastssl.methods.base import Method
from fastssl.models import feature_dim
from fastssl.models.heads import linear_norm_relu
from fastssl.ops import tiles

GRID = 3
CELLS = GRID * GRID


@dataclass(frozen=True)
class JigsawConfig:
    """Hyper-parameters of jigsaw puzzles.

    Attributes:
        permutations: orders to tell apart, of the 362880 there are; the more, the harder. The paper's largest set, and
            its best features, have 1000.
        gap: share of a cell's side that its tile leaves free, and within which the tile lies anywhere: the paper's
            tiles of 64 pixels in cells of 75.
        channel_shift: by how much each colour channel is moved against its tile at most, as a share of the tile's
            side, within the cell; the paper's 2 pixels of 64.
        tile_dim: length of a tile's code, by which alone it is known when the tiles are compared; null is the width of
            the features.
        hidden_dim: width of the layer that sees all nine codes; null is four times the width of the features.
    """

    permutations: int = 100
    gap: float = 11 / 75
    channel_shift: float = 2 / 64
    tile_dim: int | None = None
    hidden_dim: int | None = None

    def __post_init__(self) -> None:
        if not 2 <= self.permutations <= math.factorial(CELLS):
            raise UserError(
                f"the permutations of jigsaw must be from 2 to {math.factorial(CELLS)}, all orders of {CELLS} tiles; "
                f"got {self.permutations}"
            )
        for name, share in (("gap", self.gap), ("channel_shift", self.channel_shift)):
            if not 0 <= share <= 1:
                raise UserError(f"the {name} of jigsaw must be a share in [0, 1]; got {share}")
        for name, dim in (("tile_dim", self.tile_dim), ("hidden_dim", self.hidden_dim)):
            if dim is not None and dim < 1:
                raise UserError(f"the {name} of jigsaw must be 1 or more; got {dim}")


class Jigsaw(Method):
    """The context-free network (arXiv:1603.09246, section 3): tells by which of P orders nine tiles were shuffled.

    Each tile passes the encoder by itself; only the codes that come out are compared. Against shortcuts each tile is
    cut anywhere in its cell, each channel of it moved a little by itself, as lenses do, and brought to mean 0 and
    variance 1. The set of orders is part of the state, so a checkpoint keeps its own.
    """

    Config = JigsawConfig
    permutations: Tensor

    def __init__(self, encoder: nn.Module, config: JigsawConfig) -> None:
        super().__init__(encoder, config)
        dim = feature_dim(encoder)
        code = dim if config.tile_dim is None else config.tile_dim
        hidden = 4 * dim if config.hidden_dim is None else config.hidden_dim
        self.fc6 = linear_norm_relu(dim, code)
        self.head = nn.Sequential(linear_norm_relu(CELLS * code, hidden), nn.Linear(hidden, config.permutations))
        self.register_buffer("permutations", permutation_set(config.permutations))

    @classmethod
    def view_plan(cls, size: int) -> plans.ViewPlan:
        """One view, three of ten without colours."""
        tile_side("jigsaw", size, GRID, cls.Config.gap)
        return plans.jigsaw(size)

    def forward(self, views: list[Tensor]) -> Tensor:
        """views: one (N, 3, H, H) batch. Returns the scalar loss over N puzzles.

        Draws orders, places of tiles and shifts of channels from torch's global generators.
        """
        (images,) = views
        which = torch.randint(len(self.permutations), (len(images),), device=images.device)
        puzzles = self.puzzles(images, self.permutations[which])
        codes: Tensor = self.fc6(self.encoder(puzzles.flatten(0, 1)))
        return self.classification_loss(self.head(codes.view(len(images), -1)), which)

    def puzzles(self, images: Tensor, order: Tensor) -> Tensor:
        """The tiles of (N, 3, H, H) images in ``order`` (N, 9), (N, 9, 3, h, h): the k-th is of cell ``order[n, k]``.

        To ``ops.tiles`` each channel is an image, so that each can be cut at a place of its own.
        """
        size, device = images.shape[-1], images.device
        side = tile_side("jigsaw", size, GRID, self.config.gap)
        room, shift = size // GRID - side, round(self.config.channel_shift * side)
        place = torch.randint(room + 1, (len(images), 1, CELLS, 2), device=device)
        moved = place + torch.randint(-shift, shift + 1, (len(images), 3, CELLS, 2), device=device)
        cut = tiles(
            images.flatten(0, 1)[:, None],
            GRID,
            order.repeat_interleave(3, dim=0),
            size=side,
            offsets=moved.clamp(0, room).flatten(0, 1),
            normalize=True,
        )
        return cut.view(len(images), 3, CELLS, side, side).transpose(1, 2)


@cache
def _all_orders() -> Tensor:
    """(9, 9!) uint8: every order of nine tiles, a column each, mixed: the first of equals is then no special one."""
    orders = torch.tensor(list(permutations(range(CELLS))), dtype=torch.uint8)
    return orders[torch.randperm(len(orders), generator=torch.Generator().manual_seed(0))].t().contiguous()


@cache
def _farthest(count: int) -> Tensor:
    orders = _all_orders()
    nearest = torch.full((orders.shape[1],), CELLS, dtype=torch.uint8)
    total = torch.zeros(orders.shape[1], dtype=torch.int32)
    chosen = [0]
    while len(chosen) < count:
        distance = (orders != orders[:, chosen[-1], None]).sum(dim=0, dtype=torch.uint8)
        nearest, total = torch.minimum(nearest, distance), total + distance
        chosen.append(int(torch.where(nearest == nearest.max(), total, -1).argmax()))
    return orders[:, chosen].t().long()


def permutation_set(count: int) -> Tensor:
    """``count`` orders of nine tiles that are far from each other, (count, 9) int64, the same at each call.

    Greedy, as the paper's algorithm 1: the next order is always the farthest from those there are. Far is, first, by
    the smallest Hamming distance to any of them, and among equals by the sum of all distances. The algorithm as printed
    knows only the sum, and so lets two orders of a set differ by two tiles.
    """
    return _farthest(count).clone()
