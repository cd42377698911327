"""SwAV: predict the cluster of one view from another, clusters filled alike (Caron et al., arXiv:2006.09882).

Recipe:
    fastssl pretrain swav --data clipart
    fastssl pretrain swav --config benchmarks/recipes/cifar10/swav.yaml --data cifar10
        CIFAR-10 on two CPU cores: not yet measured.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from types import MappingProxyType

import torch
from torch import Tensor, nn

from fastssl.data import plans
from fastssl.errors import require_at_least, require_positive
from fastssl.methods.base import Method
from fastssl.models import feature_dim
from fastssl.models.heads import ProjectionHead, Prototypes
from fastssl.ops import distillation_loss, enqueue_, sinkhorn_knopp
from fastssl.schedule import Schedule

LARGE = 2  # crops whose codes are computed, the first of the views
ITERATIONS = 3  # of Sinkhorn-Knopp (section 3.1)


@dataclass(frozen=True)
class SwAVConfig:
    """Hyper-parameters of SwAV.

    Attributes:
        prototypes: clusters (the paper's K); its 3000 are for ImageNet. No more than a batch fills well.
        temperature: divides the scores that predict a code.
        epsilon: divides the scores that codes are made of; lower is sharper.
        hidden_dim: width of the head's hidden layer; null is that of the features, as in the paper.
        out_dim: length of what is compared with the prototypes.
        train_prototypes: 0 or 1, whether the prototypes are trained; the paper keeps them as drawn in the first epoch.
        queue: features of earlier batches, of each of the two large crops, that fill the prototypes together with the
            batch, for batches that cannot do so alone; 0 is none. The paper has 3840 for batches of 256.
        queue_epochs: epochs after which the queue begins to fill; it is used as soon as it is full.
    """

    prototypes: int = 512
    temperature: float = 0.1
    epsilon: float = 0.05
    hidden_dim: int | None = None
    out_dim: int = 128
    train_prototypes: Schedule = Schedule(0.0, 1.0, epochs=1, shape="step")
    queue: int = 0
    queue_epochs: int = 15

    def __post_init__(self) -> None:
        require_at_least("SwAV", self, prototypes=1, hidden_dim=1, out_dim=1, queue=0, queue_epochs=0)
        require_positive("SwAV", self, "temperature", "epsilon")
        self.train_prototypes.require("train_prototypes of SwAV", 0, 1)


class SwAV(Method):
    """SwAV (arXiv:2006.09882, algorithm 1), with the queue of features that the paper adds for small batches."""

    Config = SwAVConfig
    queue: Tensor  # (2, Q, D) unit rows, of each large crop its own; of no use before it is full
    cursors: Tensor  # (2,) int64, where the next row of each goes
    multi_crop = True
    collapse_causes = MappingProxyType(
        {
            "features": "the learning rate is too high: lower --optim.lr",
            "uniform output": "codes are not sharp enough: lower --swav.epsilon",
        }
    )

    def __init__(self, encoder: nn.Module, config: SwAVConfig) -> None:
        super().__init__(encoder, config)
        dim = feature_dim(encoder)
        hidden_dim = dim if config.hidden_dim is None else config.hidden_dim
        self.head = ProjectionHead(dim, hidden_dim, config.out_dim, end="bias")
        self.prototypes = Prototypes(config.out_dim, config.prototypes)
        self._queued = -1  # steps whose features have entered the queue; below 0 none are to
        if config.queue:
            self.register_buffer("queue", torch.zeros(LARGE, config.queue, config.out_dim))
            self.register_buffer("cursors", torch.zeros(LARGE, dtype=torch.int64))

    @classmethod
    def view_plan(cls, size: int) -> plans.ViewPlan:
        """Two large crops and six small ones, with SimCLR's colours (section 3.2); any number of small ones will do."""
        large = replace(plans.simclr(size), crop_scale=(0.14, 1.0), name="large")
        small = replace(large, size=plans.local_size(size), views=6, crop_scale=(0.05, 0.14), name="local")
        return replace(large, others=(small,))

    def forward(self, views: list[Tensor]) -> Tensor:
        """views: two (N, 3, H, W) batches of large crops, then small ones (N, 3, h, w). Returns the scalar loss."""
        frozen = self.now["train_prototypes"] == 0
        z = self.head(self.features(views)).unflatten(0, (len(views), -1))
        scores = self.prototypes(z, frozen=frozen)
        codes = self._codes(z[:LARGE], scores[:LARGE])
        # of each code every other crop's prediction is told (equation 1)
        loss = distillation_loss(scores, codes, student_temp=self.config.temperature, teacher_temp=None)
        if self.watched:
            self.note_teacher(codes, loss)
        return loss

    @torch.no_grad()
    def _codes(self, z: Tensor, scores: Tensor) -> Tensor:
        """(2, N, K) of the large crops' z (2, N, D) and scores (2, N, K), those of a crop by itself (equation 3).

        A full queue's rows fill the prototypes too, and their codes go unused; z then enters it (section 3.1, "working
        with small batches").
        """
        count, length = len(z[0]), self.config.queue
        if length and self._queued * count >= length:
            scores = torch.cat([self.prototypes(self.queue), scores], dim=1)
        codes = [sinkhorn_knopp(x, temp=self.config.epsilon, iterations=ITERATIONS)[-count:] for x in scores]
        if length and self._queued >= 0 and self.training:
            for i in range(LARGE):
                enqueue_(self.queue[i], self.cursors[i], z[i], normalize=True)
        return torch.stack(codes)

    def before_step(self, step: int, *, total: int, per_epoch: int) -> None:
        """Also counts what the queue holds, by the steps: to ask it would mean to wait for its device."""
        super().before_step(step, total=total, per_epoch=per_epoch)
        self._queued = max(-1, step - self.config.queue_epochs * per_epoch)
