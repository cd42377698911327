"""CPC: predict the patches below from the rows above, by telling them from others (van den Oord, arXiv:1807.03748).

Recipe:
    fastssl pretrain cpc --data clipart
    fastssl pretrain cpc --config benchmarks/recipes/cifar10/cpc.yaml --data cifar10
        CIFAR-10 on two CPU cores: 7.6 minutes, kNN 40.1 % (untrained 28.4 %); docs/scores.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor, nn

from fastssl.data import plans
from fastssl.data.tiling import overlapping_sides, with_own_colors
from fastssl.errors import UserError, require_at_least, require_positive
from fastssl.losses import CPCLoss
from fastssl.methods.base import Method
from fastssl.models import feature_dim
from fastssl.models.context import RowContext, StepsAhead


@dataclass(frozen=True)
class CPCConfig:
    """Hyper-parameters of contrastive predictive coding of images.

    Attributes:
        grid: patches in a row, and rows.
        overlap: share of a patch's side that its neighbour has too.
        jitter: share of a patch's side that is cut off, at a place drawn for each patch; a pixel at least unless 0; in
            the paper 4 pixels of 64.
        flip: share of the patches that are mirrored by themselves, so that no line goes on; in the paper none.
        color_jitter: how much brightness, contrast and colours of each patch are changed by themselves, a standard
            deviation of normalised values; the paper does without.
        grey: share of the patches that lose their colour; in the paper all.
        first_step: rows below of which the nearest that is predicted lies; 2 leaves out those that share pixels.
        last_step: rows below of which the farthest that is predicted lies; less than ``grid``.
        context_layers: of the causal convolutions that see the rows so far; each adds a row.
        temperature: divides the scores, which are products as in the paper, not cosines.
    """

    grid: int = 7
    overlap: float = 0.5
    jitter: float = 0.25
    flip: float = 0.5
    color_jitter: float = 0.5
    grey: float = 0.3
    first_step: int = 2
    last_step: int = 5
    context_layers: int = 5
    temperature: float = 1.0

    def __post_init__(self) -> None:
        require_at_least("CPC", self, grid=2, first_step=1, context_layers=1)
        require_positive("CPC", self, "temperature")
        require_at_least("CPC", self, color_jitter=0)
        for name, value in (("overlap", self.overlap), ("jitter", self.jitter)):
            if not 0 <= value < 1:
                raise UserError(f"the {name} of cpc must be a share in [0, 1); got {value}")
        for name, value in (("flip", self.flip), ("grey", self.grey)):
            if not 0 <= value <= 1:
                raise UserError(f"the {name} of cpc must be a share in [0, 1]; got {value}")
        if not self.first_step <= self.last_step < self.grid:
            raise UserError(
                f"cpc predicts from first_step to last_step rows below, which must be fewer than the {self.grid} of "
                f"its grid; got {self.first_step} to {self.last_step}"
            )


class CPC(Method):
    """Contrastive predictive coding of images (arXiv:1807.03748, section 3.2).

    The encoder sees each patch of an overlapping grid by itself. From the rows down to its own each place predicts the
    features of the patches k rows below, and is to find each among all patches of these rows, of all images.
    """

    Config = CPCConfig
    recipe = MappingProxyType({"stem": "cifar"})

    def __init__(self, encoder: nn.Module, config: CPCConfig) -> None:
        super().__init__(encoder, config)
        dim = feature_dim(encoder)
        self.context = RowContext(dim, config.context_layers)
        self.ahead = StepsAhead(dim, dim, config.first_step, config.last_step)
        self.loss = CPCLoss(config.temperature, normalized=True)

    @classmethod
    def view_plan(cls, size: int) -> plans.ViewPlan:
        """One view by crop and flip, in all its colours: what is done to those is done to each patch."""
        return plans.ViewPlan(size=size, crop_scale=(0.6, 1.0), crop_ratio=(3 / 4, 4 / 3), flip=0.5)

    def forward(self, views: list[Tensor]) -> Tensor:
        """views: one (N, 3, H, H) batch. Returns the scalar loss.

        Draws what is done to each patch from torch's global generators.
        """
        (images,) = views
        patches = self.patches(images)
        latents = self.encoder(patches.flatten(0, 2)).unflatten(0, patches.shape[:3])  # (N, grid, grid, D)
        contexts = self.context(latents.movedim(-1, 1)).movedim(1, -1)
        predictions, targets = self.ahead(contexts, latents)
        loss: Tensor = self.loss(predictions, targets)
        self.note_predictions(predictions, targets, loss)
        return loss

    def patches(self, images: Tensor) -> Tensor:
        """(N, 3, H, H) images to (N, grid, grid, 3, h, h), of which each was cut, mirrored and coloured by itself."""
        grid, (count, _, size, _) = self.config.grid, images.shape
        patch, side = overlapping_sides("cpc", size, grid, self.config.overlap, self.config.jitter)
        begins = torch.linspace(0, size - patch, grid, device=images.device).round().long()
        drawn = torch.randint(patch - side + 1, (2, count, grid, grid), device=images.device)
        pixels = torch.arange(side, device=images.device)
        rows = (begins[:, None] + drawn[0])[..., None, None] + pixels[:, None]
        mirrored = torch.rand(count, grid, grid, 1, 1, device=images.device) < self.config.flip
        columns = (begins + drawn[1])[..., None, None] + torch.where(mirrored, pixels.flip(0), pixels)
        sample = torch.arange(count, device=images.device).view(-1, 1, 1, 1, 1)
        patches = images[sample, :, rows, columns].movedim(-1, 3)
        return with_own_colors(patches, self.config.color_jitter, self.config.grey)
