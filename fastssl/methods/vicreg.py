"""VICReg: views agree, features vary over the batch, and do not repeat each other (Bardes et al., arXiv:2105.04906).

Recipe:
    fastssl pretrain vicreg --data clipart
    fastssl pretrain vicreg --config benchmarks/recipes/cifar10/vicreg.yaml --data cifar10
        CIFAR-10 on two CPU cores: 6.9 minutes, kNN 46.5 % (untrained 28.4 %); docs/scores.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType

from torch import Tensor, nn

from fastssl.data import plans
from fastssl.errors import require_at_least
from fastssl.losses import VICReg as VICRegLoss
from fastssl.methods.base import Method
from fastssl.models import feature_dim
from fastssl.models.heads import ProjectionHead


@dataclass(frozen=True)
class VICRegConfig:
    """Hyper-parameters of VICReg.

    Attributes:
        invariance: weight of the distance between the views (the paper's lambda).
        variance: weight of the hinge that keeps each feature's deviation at 1 or above (mu).
        covariance: weight of the covariances between different features (nu).
        out_dim: length of the embeddings, and width of the expander; null is four times that of the features, as the
            paper's 8192 of 2048.
    """

    invariance: float = 25.0
    variance: float = 25.0
    covariance: float = 1.0
    out_dim: int | None = None

    def __post_init__(self) -> None:
        require_at_least("VICReg", self, invariance=0, variance=0, covariance=0, out_dim=1)


class VICReg(Method):
    """VICReg (arXiv:2105.04906, algorithm 1). Each view is regularised by itself: no statistics are shared."""

    Config = VICRegConfig
    compared = "expander"
    recipe = MappingProxyType({"optim": {"lr": 0.03}})
    collapse_causes = MappingProxyType({"features": "nothing keeps the features apart: raise --vicreg.variance"})

    def __init__(self, encoder: nn.Module, config: VICRegConfig) -> None:
        super().__init__(encoder, config)
        dim = feature_dim(encoder)
        out_dim = 4 * dim if config.out_dim is None else config.out_dim
        self.expander = ProjectionHead(dim, out_dim, out_dim, layers=3, end="plain")
        self.loss = VICRegLoss(config.invariance, config.variance, config.covariance)

    @classmethod
    def view_plan(cls, size: int) -> plans.ViewPlan:
        """Two views, BYOL's (appendix C.1)."""
        return plans.byol(size)

    def forward(self, views: list[Tensor]) -> Tensor:
        """views: two (N, 3, H, W) batches. Returns the scalar loss (equation 6)."""
        z0, z1 = (self.expander(self.encoder(view)) for view in views)
        loss: Tensor = self.loss(z0, z1)
        return loss
