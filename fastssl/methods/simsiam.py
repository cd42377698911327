"""SimSiam: predict one view's projection from the other's, without gradient to it (Chen and He, arXiv:2011.10566).

Recipe:
    fastssl pretrain simsiam --data clipart
    fastssl pretrain simsiam --config benchmarks/recipes/cifar10/simsiam.yaml --data cifar10
        CIFAR-10 on two CPU cores: not yet measured.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType

from torch import Tensor, nn

from fastssl.data import plans
from fastssl.errors import require_at_least
from fastssl.losses import NegativeCosineSimilarity
from fastssl.methods.base import Method
from fastssl.models import feature_dim
from fastssl.models.heads import ProjectionHead


@dataclass(frozen=True)
class SimSiamConfig:
    """Hyper-parameters of SimSiam.

    Attributes:
        out_dim: length of projections and predictions, and width of the projector; null is that of the features, as in
            the paper.
        projector_layers: linear layers of the projector; the paper has 3, for CIFAR-10 2.
        predictor_dim: width of the predictor's hidden layer, a bottleneck; null is a quarter of ``out_dim``.
    """

    out_dim: int | None = None
    projector_layers: int = 3
    predictor_dim: int | None = None

    def __post_init__(self) -> None:
        require_at_least("SimSiam", self, out_dim=1, projector_layers=1, predictor_dim=1)


class SimSiam(Method):
    """SimSiam (arXiv:2011.10566, algorithm 1): no negatives, no momentum encoder; a stopped gradient is all."""

    Config = SimSiamConfig
    compared = "projector"
    recipe = MappingProxyType({"optim": {"lr": 0.05}})  # section 3, for batches of 256
    collapse_causes = MappingProxyType(
        {
            "features": "the predictor does not keep up with the encoder, or the learning rate is too high: lower "
            "--optim.lr, raise --simsiam.predictor_dim"
        }
    )

    def __init__(self, encoder: nn.Module, config: SimSiamConfig) -> None:
        super().__init__(encoder, config)
        dim = feature_dim(encoder)
        out_dim = dim if config.out_dim is None else config.out_dim
        bottleneck = max(1, out_dim // 4) if config.predictor_dim is None else config.predictor_dim
        self.projector = ProjectionHead(dim, out_dim, out_dim, config.projector_layers, end="normalized")
        self.predictor = ProjectionHead(out_dim, bottleneck, out_dim, end="bias")
        self.loss = NegativeCosineSimilarity()

    @classmethod
    def view_plan(cls, size: int) -> plans.ViewPlan:
        """Two views by crop, flip, colour and blur, as MoCo v2's (section 3)."""
        return plans.moco_v2(size)

    def forward(self, views: list[Tensor]) -> Tensor:
        """views: two (N, 3, H, W) batches. Returns the scalar loss, in [-1, 1] (equation 2)."""
        z0, z1 = (self.projector(self.encoder(view)) for view in views)
        p0, p1 = self.predictor(z0), self.predictor(z1)
        loss: Tensor = self.loss(p0, z1.detach()) / 2 + self.loss(p1, z0.detach()) / 2
        return loss
