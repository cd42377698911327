"""SwAV: predict the cluster of one view from another, clusters filled alike (Caron et al., arXiv:2006.09882).

Recipe:
    fastssl pretrain swav --data clipart
    CIFAR-10 as folders train/ and test/ of classes, an encoder of 100k parameters:
    fastssl pretrain swav --data cifar10 --image_size 32 --stem cifar --width 6 --batch_size 512 --epochs 8
        --plan.local.views 4 --optim.lr 0.1 --optim.warmup_epochs 1 --swav.prototypes 512 --precision bfloat16
    Time and score: not yet measured.
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
from fastssl.ops import distillation_loss, sinkhorn_knopp
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
    """

    prototypes: int = 512
    temperature: float = 0.1
    epsilon: float = 0.05
    hidden_dim: int | None = None
    out_dim: int = 128
    train_prototypes: Schedule = Schedule(0.0, 1.0, epochs=1, shape="step")

    def __post_init__(self) -> None:
        require_at_least("SwAV", self, prototypes=1, hidden_dim=1, out_dim=1)
        require_positive("SwAV", self, "temperature", "epsilon")
        self.train_prototypes.require("train_prototypes of SwAV", 0, 1)


class SwAV(Method):
    """SwAV (arXiv:2006.09882, algorithm 1), without the queue of features that the paper adds for small batches."""

    Config = SwAVConfig
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

    @classmethod
    def view_plan(cls, size: int) -> plans.ViewPlan:
        """Two large crops and six small ones, with SimCLR's colours (section 3.2); any number of small ones will do."""
        large = replace(plans.simclr(size), crop_scale=(0.14, 1.0), name="large")
        small = replace(large, size=plans.local_size(size), views=6, crop_scale=(0.05, 0.14), name="local")
        return replace(large, others=(small,))

    def forward(self, views: list[Tensor]) -> Tensor:
        """views: two (N, 3, H, W) batches of large crops, then small ones (N, 3, h, w). Returns the scalar loss."""
        frozen = self.now["train_prototypes"] == 0
        scores = self.prototypes(self.head(self.features(views)), frozen=frozen).unflatten(0, (len(views), -1))
        # codes of each crop by itself (equation 3), from which every other crop's prediction is told (equation 1)
        temp, epsilon = self.config.temperature, self.config.epsilon
        codes = torch.stack([sinkhorn_knopp(x, temp=epsilon, iterations=ITERATIONS) for x in scores[:LARGE].detach()])
        loss = distillation_loss(scores, codes, student_temp=temp, teacher_temp=None)
        if self.watched:
            self.note_teacher(codes, loss)
        return loss
