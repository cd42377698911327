"""MoCo: contrast two views of an image against a queue of earlier keys (He et al., arXiv:1911.05722, 2003.04297).

Recipe:
    fastssl pretrain moco --data clipart
    fastssl pretrain moco --config benchmarks/recipes/cifar10/moco.yaml --data cifar10
        CIFAR-10 on two CPU cores: not yet measured.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from fastssl.data import plans
from fastssl.errors import require_at_least, require_positive, unknown
from fastssl.losses import MoCoLoss
from fastssl.methods.base import Method
from fastssl.models import feature_dim
from fastssl.models.heads import ProjectionHead
from fastssl.momentum import EMA
from fastssl.schedule import Schedule

BatchNorm = Literal["split", "whole"]


@dataclass(frozen=True)
class MoCoConfig:
    """Hyper-parameters of MoCo. Version 2 by default; version 1 is ``head_layers`` 1, temperature 0.07, other views.

    Attributes:
        temperature: divides the cosine similarities; 0.2 in version 2, 0.07 in version 1.
        queue: keys of earlier batches that are the negatives, at least a batch; the paper's 65536 are for ImageNet.
        momentum: share of its own weights that the key encoder keeps at a step.
        hidden_dim: width of the head's hidden layers; null is the width of the features, as in the paper.
        out_dim: length of the queries and keys.
        head_layers: 1 is version 1's linear head, 2 version 2's MLP, without batch normalisation.
        batch_norm: what the encoders' batch normalisation sees in training: "split" is ``part`` images at a time, those
            of the keys shuffled among the parts, as shuffled batch norm on as many devices has it; "whole" is the
            batch, which lets a query be told from its key by their common statistics.
        part: images whose statistics are computed together by "split"; 32 on each of the paper's devices.
    """

    temperature: float = 0.2
    queue: int = 4096
    momentum: Schedule = Schedule(0.999)
    hidden_dim: int | None = None
    out_dim: int = 128
    head_layers: int = 2
    batch_norm: BatchNorm = "split"
    part: int = 32

    def __post_init__(self) -> None:
        require_positive("MoCo", self, "temperature")
        require_at_least("MoCo", self, queue=1, hidden_dim=1, out_dim=1, head_layers=1, part=2)
        self.momentum.require("momentum of MoCo", 0, 1)
        if self.batch_norm not in get_args(BatchNorm):
            raise unknown("batch_norm of MoCo", self.batch_norm, get_args(BatchNorm))


class MoCo(Method):
    """MoCo (arXiv:1911.05722, algorithm 1). The encoder of the queries is kept, that of the keys follows it."""

    Config = MoCoConfig
    compared = "head"

    def __init__(self, encoder: nn.Module, config: MoCoConfig) -> None:
        super().__init__(encoder, config)
        dim = feature_dim(encoder)
        hidden_dim = dim if config.hidden_dim is None else config.hidden_dim
        self.head = ProjectionHead(dim, hidden_dim, config.out_dim, config.head_layers, norm=False, end="bias")
        self.keys = EMA(self.queries, config.momentum.start)
        self.loss = MoCoLoss(config.temperature, dim=config.out_dim, length=config.queue)

    @property
    def queries(self) -> nn.Module:
        """What the key encoder follows."""
        return nn.Sequential(self.encoder, self.head)

    @classmethod
    def view_plan(cls, size: int) -> plans.ViewPlan:
        """Two views by crop, flip, colour and blur (arXiv:2003.04297, section 3)."""
        return plans.moco_v2(size)

    def forward(self, views: list[Tensor]) -> Tensor:
        """views: two (N, 3, H, W) batches. Returns the scalar loss; in training, the keys then enter the queue."""
        query = self._in_parts(self.queries, views[0])
        with torch.no_grad():
            key = self._shuffled(views[1])
        loss: Tensor = self.loss(query, key)
        return loss

    def _shuffled(self, images: Tensor) -> Tensor:
        """Keys of ``images``, whose statistics are those of other images than their queries' (section 3.3)."""
        order = torch.randperm(len(images), device=images.device)
        return self._in_parts(self.keys, images[order])[order.argsort()]

    def _in_parts(self, network: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
        """``network`` of as many equal parts of a batch as leave each ``part`` images or more."""
        count = len(images) // self.config.part if self.training and self.config.batch_norm == "split" else 1
        while len(images) % max(1, count):
            count -= 1
        return torch.cat([network(part) for part in images.chunk(max(1, count))])

    def after_step(self, progress: float) -> None:
        """Equation 2."""
        self.keys.update(self.queries, momentum=self.now["momentum"])
