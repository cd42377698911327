"""MoCo v3: contrast predictions with a momentum encoder's keys in the batch (Chen et al., arXiv:2104.02057).

Recipe:
    fastssl pretrain moco_v3 --data clipart
    fastssl pretrain moco_v3 --config benchmarks/recipes/cifar10/moco_v3.yaml --data cifar10
        CIFAR-10 on two CPU cores: 7.4 minutes, kNN 41.7 % (untrained 28.4 %); docs/scores.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor, nn

from fastssl.data import plans
from fastssl.errors import require_at_least, require_positive
from fastssl.losses import InfoNCE
from fastssl.methods.base import Method
from fastssl.models import feature_dim
from fastssl.models.heads import ProjectionHead
from fastssl.models.vit import VisionTransformer
from fastssl.momentum import EMA
from fastssl.schedule import Schedule


@dataclass(frozen=True)
class MoCoV3Config:
    """Hyper-parameters of MoCo v3.

    Attributes:
        temperature: divides the cosine similarities; 0.2 for Vision Transformers, 1 for ResNets.
        momentum: share of its own weights that the momentum encoder keeps at a step.
        hidden_dim: width of the hidden layers of projector and predictor; null is twice that of the features, as the
            paper's 4096 for a ResNet-50.
        out_dim: length of the queries and keys.
        projector_layers: 3 for Vision Transformers, 2 for ResNets.
        train_patches: whether a Vision Transformer's patch embedding is trained; left as drawn, training is more stable
            (section 4.2).
    """

    temperature: float = 0.2
    momentum: Schedule = Schedule(0.99, 1.0)
    hidden_dim: int | None = None
    out_dim: int = 256
    projector_layers: int = 3
    train_patches: bool = False

    def __post_init__(self) -> None:
        require_positive("MoCo v3", self, "temperature")
        require_at_least("MoCo v3", self, hidden_dim=1, out_dim=1, projector_layers=1)
        self.momentum.require("momentum of MoCo v3", 0, 1)


class MoCoV3(Method):
    """MoCo v3 (arXiv:2104.02057, algorithm 1): each view's query finds the other's key among those of the batch."""

    Config = MoCoV3Config
    compared = "predictor"
    # Section 4.1's optimiser; its rate, for batches of 4096 and larger networks, is 1.5e-4 for each 256 images.
    recipe = MappingProxyType(
        {
            "encoder": "vit_micro",
            "pool": "token",
            "optim": {"name": "adamw", "lr": 5e-4, "weight_decay": 0.1, "warmup_epochs": 10},
        }
    )

    def __init__(self, encoder: nn.Module, config: MoCoV3Config) -> None:
        super().__init__(encoder, config)
        if isinstance(encoder, VisionTransformer):
            encoder.patch_embed.requires_grad_(config.train_patches)
        dim, out_dim = feature_dim(encoder), config.out_dim
        hidden_dim = 2 * dim if config.hidden_dim is None else config.hidden_dim
        self.projector = ProjectionHead(dim, hidden_dim, out_dim, config.projector_layers, end="normalized")
        self.predictor = ProjectionHead(out_dim, hidden_dim, out_dim, end="normalized")
        self.teacher = EMA(self.student, config.momentum.start)
        self.loss = InfoNCE(config.temperature)

    @property
    def student(self) -> nn.Module:
        """What the momentum encoder follows."""
        return nn.Sequential(self.encoder, self.projector)

    @classmethod
    def view_plan(cls, size: int) -> plans.ViewPlan:
        """Two views, BYOL's (section 4.1)."""
        return plans.byol(size)

    def forward(self, views: list[Tensor]) -> Tensor:
        """views: two (N, 3, H, W) batches. Returns the scalar loss, symmetric and scaled by 2 tau (algorithm 1)."""
        q0, q1 = (self.predictor(self.student(view)) for view in views)
        with torch.no_grad():
            k0, k1 = (self.teacher(view) for view in views)
        loss: Tensor = 2 * self.config.temperature * (self.loss(q0, k1) + self.loss(q1, k0))
        return loss

    def after_step(self, progress: float) -> None:
        """The momentum encoder follows."""
        self.teacher.update(self.student, momentum=self.now["momentum"])

    def pictures(self, views: list[Tensor]) -> dict[str, Tensor]:
        """Where the class token of a Vision Transformer looks."""
        return self.class_attention_pictures(views[0])
