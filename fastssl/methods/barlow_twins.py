"""Barlow Twins: features of two views agree each with itself and with no other (Zbontar et al., arXiv:2103.03230).

Recipe:
    fastssl pretrain barlow_twins --data clipart
    fastssl pretrain barlow_twins --config benchmarks/recipes/cifar10/barlow_twins.yaml --data cifar10
        CIFAR-10 on two CPU cores: 5.0 minutes, kNN 44.1 % (untrained 28.4 %); docs/scores.md.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from fastssl.data import plans
from fastssl.errors import require_at_least, require_positive
from fastssl.losses import BarlowTwins as BarlowTwinsLoss
from fastssl.methods.base import Method
from fastssl.models import feature_dim
from fastssl.models.heads import ProjectionHead


@dataclass(frozen=True)
class BarlowTwinsConfig:
    """Hyper-parameters of Barlow Twins.

    Attributes:
        redundancy_weight: lambda, the weight of the correlations between different features.
        scale: multiplies the loss, which sums over features and would make the steps of SGD large.
        out_dim: length of the projections, and width of the projector; null is four times that of the features, as the
            paper's 8192 of 2048.
    """

    redundancy_weight: float = 0.005
    scale: float = 0.1
    out_dim: int | None = None

    def __post_init__(self) -> None:
        require_positive("Barlow Twins", self, "redundancy_weight", "scale")
        require_at_least("Barlow Twins", self, out_dim=1)


class BarlowTwins(Method):
    """Barlow Twins (arXiv:2103.03230, algorithm 1). No negatives, no momentum encoder, no predictor."""

    Config = BarlowTwinsConfig
    compared = "projector"

    def __init__(self, encoder: nn.Module, config: BarlowTwinsConfig) -> None:
        super().__init__(encoder, config)
        dim = feature_dim(encoder)
        out_dim = 4 * dim if config.out_dim is None else config.out_dim
        self.projector = ProjectionHead(dim, out_dim, out_dim, layers=3, end="plain")
        self.loss = BarlowTwinsLoss(config.redundancy_weight)

    @classmethod
    def view_plan(cls, size: int) -> plans.ViewPlan:
        """Two views, BYOL's (section 2.2)."""
        return plans.byol(size)

    def forward(self, views: list[Tensor]) -> Tensor:
        """views: two (N, 3, H, W) batches. Returns the scalar loss; each view has batch statistics of its own."""
        z0, z1 = (self.projector(self.encoder(view)) for view in views)
        loss: Tensor = self.config.scale * self.loss(z0, z1)
        return loss
