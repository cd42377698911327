"""BYOL: predict what a slowly moving copy of the network says of another view (Grill et al., arXiv:2006.07733).

Recipe:
    fastssl pretrain byol --data clipart
    fastssl pretrain byol --config benchmarks/recipes/cifar10/byol.yaml --data cifar10
        CIFAR-10 on two CPU cores: not yet measured.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor, nn

from fastssl.data import plans
from fastssl.errors import require_at_least
from fastssl.losses import NegativeCosineSimilarity
from fastssl.methods.base import Method
from fastssl.models import feature_dim
from fastssl.models.heads import ProjectionHead
from fastssl.momentum import EMA
from fastssl.schedule import Schedule


@dataclass(frozen=True)
class BYOLConfig:
    """Hyper-parameters of BYOL.

    Attributes:
        momentum: share of its own weights that the target network keeps at a step (section 3.2).
        hidden_dim: width of the hidden layer of projector and predictor; null is twice that of the features, as the
            paper's 4096 of 2048.
        out_dim: length of projections and predictions.
    """

    momentum: Schedule = Schedule(0.996, 1.0)
    hidden_dim: int | None = None
    out_dim: int = 256

    def __post_init__(self) -> None:
        require_at_least("BYOL", self, hidden_dim=1, out_dim=1)
        self.momentum.require("momentum of BYOL", 0, 1)


class BYOL(Method):
    """BYOL (arXiv:2006.07733, algorithm 1). The target gets no gradient, and only the online network predicts."""

    Config = BYOLConfig
    compared = "predictor"
    collapse_causes = MappingProxyType(
        {
            "features": "the target moves too fast or the learning rate is too high: raise --byol.momentum.start, "
            "lower --optim.lr"
        }
    )

    def __init__(self, encoder: nn.Module, config: BYOLConfig) -> None:
        super().__init__(encoder, config)
        dim, out_dim = feature_dim(encoder), config.out_dim
        hidden_dim = 2 * dim if config.hidden_dim is None else config.hidden_dim
        self.projector = ProjectionHead(dim, hidden_dim, out_dim, end="plain")
        self.predictor = ProjectionHead(out_dim, hidden_dim, out_dim, end="plain")
        self.target = EMA(self.online, config.momentum.start)
        self.loss = NegativeCosineSimilarity()

    @property
    def online(self) -> nn.Module:
        """What the target follows."""
        return nn.Sequential(self.encoder, self.projector)

    @classmethod
    def view_plan(cls, size: int) -> plans.ViewPlan:
        """Two views, one blurred, the other at times solarized (appendix B)."""
        return plans.byol(size)

    def forward(self, views: list[Tensor]) -> Tensor:
        """views: two (N, 3, H, W) batches. Returns the scalar loss, 2 - 2 cosines for each view (equations 2 and 3)."""
        p0, p1 = (self.predictor(self.online(view)) for view in views)
        with torch.no_grad():
            z0, z1 = (self.target(view) for view in views)
        loss: Tensor = 4 + 2 * self.loss(p0, z1) + 2 * self.loss(p1, z0)
        return loss

    def after_step(self, progress: float) -> None:
        """Equation 1."""
        self.target.update(self.online, momentum=self.now["momentum"])
