"""Relative patch: where does a patch lie, seen from its neighbour? (Doersch et al., arXiv:1505.05192).

Recipe:
    fastssl pretrain relative_patch --data clipart --image_size 96 --stem cifar --width 16
    fastssl pretrain relative_patch --config benchmarks/recipes/cifar10/relative_patch.yaml --data cifar10
        CIFAR-10 on two CPU cores: 4.5 minutes, kNN 28.6 % (untrained 30.4 %); docs/scores.md.
    fastssl pretrain relative_patch --config benchmarks/recipes/imagenette/relative_patch.yaml --data imagenette128
        Imagenette on two CPU cores: 5.7 minutes, kNN 35.3 % (untrained 31.7 %); docs/scores.md.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastssl.data import plans
from fastssl.data.tiling import tile_side
from fastssl.errors import UserError, unknown
from fastssl.methods.base import Method
from fastssl.models import feature_dim
from fastssl.models.heads import linear_norm_relu
from fastssl.ops import tiles

Colors = Literal["drop", "project", "keep"]

GRID = 3
# Where the second patch lies, as rows and columns from the first: the classes, row by row.
DIRECTIONS = tuple((y, x) for y in (-1, 0, 1) for x in (-1, 0, 1) if (y, x) != (0, 0))
NOISE = 0.01  # standard deviation of what replaces a channel, those that stay having 1 (section 3.1)
PIXELATED_SIDE = 10  # "as little as 100 total pixels" (section 3)


@dataclass(frozen=True)
class RelativePatchConfig:
    """Hyper-parameters of relative patch prediction. Shares are of the side of a cell, of which an image has 3 x 3.

    Attributes:
        gap: share left free between two patches; the paper's 48 pixels between patches of 96.
        jitter: share by which each patch is moved at most, up, down, left and right, at least a pixel unless 0; the
            paper's 7 pixels. No more than half the gap.
        colors: against the shortcut by chromatic aberration (section 3.1): "drop" replaces two of the three channels
            of each patch by noise, "project" takes green against magenta out of the image, "keep" does nothing.
        pixelate: share of the patches whose resolution is lowered, to 10 x 10 pixels at least; the authors' code has
            a third.
        hidden_dim: width of the layers behind the encoder, in the paper 4096; null is the width of the features.
    """

    gap: float = 48 / 144
    jitter: float = 7 / 144
    colors: Colors = "drop"
    pixelate: float = 1 / 3
    hidden_dim: int | None = None

    def __post_init__(self) -> None:
        for name, value in (("gap", self.gap), ("jitter", self.jitter), ("pixelate", self.pixelate)):
            if not 0 <= value <= 1:
                raise UserError(f"the {name} of relative_patch must be a share in [0, 1]; got {value}")
        if self.jitter > self.gap / 2:
            raise UserError(
                f"the jitter of relative_patch must be at most half its gap, {self.gap / 2:.3g}, for patches that move "
                f"towards each other must not touch; got {self.jitter:.3g}"
            )
        if self.colors not in get_args(Colors):
            raise unknown("colors of relative_patch", self.colors, get_args(Colors))
        if self.hidden_dim is not None and self.hidden_dim < 1:
            raise UserError(f"the hidden_dim of relative_patch must be 1 or more; got {self.hidden_dim}")


class RelativePatch(Method):
    """Context prediction (arXiv:1505.05192): the place of a patch around another, one of eight, by late fusion.

    As in the authors' code, all patches of a 3 x 3 grid pass the encoder once and take part in several pairs. Of each
    direction one pair of neighbours is drawn, so the classes are equally frequent; the first need not be the centre,
    for then where the second lies in the image would be the answer, and nothing had to be compared.

    Each patch is brought to mean 0 and variance 1, and the batch norm of the layers behind the encoder has neither
    scale nor shift: without it the authors saw all patches get the same features (section 3).
    """

    Config = RelativePatchConfig
    pairs: Tensor
    projection: Tensor

    def __init__(self, encoder: nn.Module, config: RelativePatchConfig) -> None:
        super().__init__(encoder, config)
        dim = feature_dim(encoder)
        hidden = dim if config.hidden_dim is None else config.hidden_dim
        self.fc6 = linear_norm_relu(dim, hidden, affine=False)
        self.fuse = nn.Sequential(
            linear_norm_relu(2 * hidden, hidden, affine=False),
            nn.Linear(hidden, hidden),
            nn.ReLU(),
            nn.Linear(hidden, 8),
        )
        self.register_buffer("pairs", _pairs(), persistent=False)
        self.register_buffer("projection", _projection(), persistent=False)

    @classmethod
    def view_plan(cls, size: int) -> plans.ViewPlan:
        """One view, in all its colours: what is done against them is done to each patch."""
        tile_side("relative_patch", size, GRID, cls.Config.gap)
        return replace(plans.relative_patch(size), grayscale=0.0)

    def forward(self, views: list[Tensor]) -> Tensor:
        """views: one (N, 3, H, H) batch. Returns the scalar loss over 8 N pairs.

        Draws jitter, colours, resolutions and pairs from torch's global generators.
        """
        (images,) = views
        patches = self.patches(images)
        features: Tensor = self.fc6(self.encoder(patches.flatten(0, 1)))
        first, second = self._draw_pairs(features.view(*patches.shape[:2], -1))
        logits = self.fuse(torch.cat([first, second], dim=2).flatten(0, 1))
        where = torch.arange(len(DIRECTIONS), device=logits.device).repeat(len(images))
        return self.classification_loss(logits, where)

    def patches(self, images: Tensor) -> Tensor:
        """(N, 3, H, H) images to their (N, 9, 3, h, h) patches, row by row, with all that is done against shortcuts."""
        config, cell = self.config, images.shape[-1] // GRID
        side = tile_side("relative_patch", images.shape[-1], GRID, config.gap)
        jitter = min(max(round(config.jitter * cell), int(config.jitter > 0)), (cell - side) // 2)
        if config.colors == "project":  # not as a matrix product, which autocast would compute in bfloat16
            images = (self.projection[..., None, None] * images[:, None]).sum(dim=2)
        patches = tiles(images, GRID, size=side, jitter=jitter, normalize=True)
        if config.pixelate > 0 and side > PIXELATED_SIDE:
            patches = _pixelated(patches, config.pixelate)
        return _dropped(patches) if config.colors == "drop" else patches

    def _draw_pairs(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """(N, 9, D) features to those of first and second patches, each (N, 8, D), a pair for each direction."""
        batch, device = len(features), features.device
        directions = torch.arange(len(DIRECTIONS), device=device)
        drawn = torch.randint(self.pairs.shape[1], (batch, len(DIRECTIONS)), device=device)
        first, second = self.pairs[directions, drawn].unbind(-1)
        sample = torch.arange(batch, device=device)[:, None]
        return features[sample, first], features[sample, second]


def _pairs() -> Tensor:
    """(8, 12, 2): the cells of first and second patch, for each direction all pairs there are, each equally often."""
    table = []
    for down, right in DIRECTIONS:
        places = [(y, x, y + down, x + right) for y in range(GRID) for x in range(GRID)]
        cells = [(y * GRID + x, v * GRID + u) for y, x, v, u in places if 0 <= v < GRID and 0 <= u < GRID]
        table.append(cells * (12 // len(cells)))  # 6 pairs beside or above each other, 4 aslant
    return torch.tensor(table)


def _projection() -> Tensor:
    """(3, 3): takes the green-magenta axis (-1, 2, -1) out of RGB values that are normalised by ImageNet's std."""
    axis, std = torch.tensor([-1.0, 2.0, -1.0]), torch.tensor(plans.IMAGENET_STD)
    without = torch.eye(3) - axis.outer(axis) / axis.dot(axis)
    return without * std / std[:, None]


def _pixelated(patches: Tensor, share: float) -> Tensor:
    """Lowers the resolution of a ``share`` of (N, K, 3, h, h) patches; all to one, drawn anew for each batch."""
    side = patches.shape[-1]
    area = torch.rand(()).item() * (side**2 - PIXELATED_SIDE**2) + PIXELATED_SIDE**2
    flat = patches.flatten(0, 1)
    coarse = F.interpolate(flat, size=int(area**0.5), mode="bilinear", antialias=True)
    coarse = F.interpolate(coarse, size=side, mode="bilinear")
    chosen = torch.rand(len(flat), 1, 1, 1, device=flat.device) < share
    return torch.where(chosen, coarse, flat).view_as(patches)


def _dropped(patches: Tensor) -> Tensor:
    """Leaves one channel, drawn for each, of (N, K, 3, h, h) patches; the others are noise."""
    kept = torch.randint(3, (*patches.shape[:2], 1, 1, 1), device=patches.device)
    channel = torch.arange(3, device=patches.device).view(3, 1, 1)
    return torch.where(channel == kept, patches, NOISE * torch.randn_like(patches))
