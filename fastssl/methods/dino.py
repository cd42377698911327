"""DINO: a student learns from small crops what its own average says of large ones (Caron et al., arXiv:2104.14294).

Recipe:
    fastssl pretrain dino --data clipart
    fastssl pretrain dino --config benchmarks/recipes/cifar10/dino.yaml --data cifar10
        CIFAR-10 on two CPU cores: not yet measured.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import get_args

import torch
from torch import Tensor, nn

from fastssl.data import plans
from fastssl.errors import require_at_least, require_positive, unknown
from fastssl.losses import DINOLoss
from fastssl.losses.dino import Centering
from fastssl.methods.base import Method
from fastssl.models import feature_dim
from fastssl.models.heads import PrototypeHead
from fastssl.momentum import EMA
from fastssl.schedule import Schedule

LARGE = 2  # crops that the teacher sees, the first of the views


@dataclass(frozen=True)
class DINOConfig:
    """Hyper-parameters of DINO.

    Attributes:
        prototypes: outputs that the crops are assigned to (the paper's K); its 65536 are for ImageNet.
        hidden_dim: width of the head's hidden layers; null is four times that of the features, at most the paper's
            2048.
        bottleneck_dim: length of what is compared with the prototypes.
        momentum: share of its own weights that the teacher keeps at a step.
        student_temp: divides the student's outputs.
        teacher_temp: divides the teacher's; lower is sharper, which keeps its output from becoming uniform.
        centering: what keeps one prototype from taking all images: "center" subtracts the moving average of the
            teacher's outputs, "sinkhorn" assigns the batch to all prototypes alike, as DINOv2 does.
        center_momentum: share of itself that the center keeps at a step.
        train_prototypes: 0 or 1, whether the last layer is trained; the paper keeps it as drawn in the first epoch.
    """

    prototypes: int = 4096
    hidden_dim: int | None = None
    bottleneck_dim: int = 256
    momentum: Schedule = Schedule(0.996, 1.0)
    student_temp: float = 0.1
    teacher_temp: Schedule = Schedule(0.04, 0.07, epochs=30, shape="linear")
    centering: Centering = "center"
    center_momentum: float = 0.9
    train_prototypes: Schedule = Schedule(0.0, 1.0, epochs=1, shape="step")

    def __post_init__(self) -> None:
        require_at_least("DINO", self, prototypes=1, hidden_dim=1, bottleneck_dim=1)
        require_positive("DINO", self, "student_temp")
        self.teacher_temp.require("teacher_temp of DINO", 1e-3)
        for name in ("momentum", "train_prototypes"):
            getattr(self, name).require(f"{name} of DINO", 0, 1)
        Schedule(self.center_momentum).require("center_momentum of DINO", 0, 1)
        if self.centering not in get_args(Centering):
            raise unknown("centering of DINO", self.centering, get_args(Centering))


class DINO(Method):
    """DINO (arXiv:2104.14294, algorithm 1). The teacher, an average of students, is what is kept."""

    Config = DINOConfig
    # The paper's optimiser (section 3.2); its class token is what the head sees and what attends to the patches.
    recipe = MappingProxyType(
        {
            "encoder": "vit_micro",
            "pool": "token",
            "optim": {
                "name": "adamw",
                "lr": 5e-4,
                "weight_decay": 0.04,
                "final_weight_decay": 0.4,
                "warmup_epochs": 10,
                "final_lr": 1e-6,
            },
        }
    )
    multi_crop = True
    collapse_causes = MappingProxyType(
        {
            "features": "the learning rate is too high, or the teacher moves too fast: lower --optim.lr, raise "
            "--dino.momentum.start",
            "one output": "the teacher is not centred enough: lower --dino.center_momentum, or take --dino.centering "
            "sinkhorn",
            "uniform output": "the teacher is not sharp enough: lower --dino.teacher_temp.start and .end",
        }
    )

    def __init__(self, encoder: nn.Module, config: DINOConfig) -> None:
        super().__init__(encoder, config)
        dim = feature_dim(encoder)
        hidden_dim = min(2048, 4 * dim) if config.hidden_dim is None else config.hidden_dim
        self.head = PrototypeHead(dim, hidden_dim, config.bottleneck_dim, config.prototypes)
        self.teacher = EMA(self.student, config.momentum.start)
        self.loss = DINOLoss(
            config.prototypes,
            student_temp=config.student_temp,
            centering=config.centering,
            center_momentum=config.center_momentum,
        )

    @property
    def student(self) -> nn.Module:
        """What the teacher follows."""
        return nn.Sequential(self.encoder, self.head)

    @property
    def kept(self) -> nn.Module:
        """The teacher's encoder, which is better than the student's throughout training (section 5.2)."""
        teacher: nn.Module = self.teacher.module[0]  # type: ignore[index]
        return teacher

    @classmethod
    def view_plan(cls, size: int) -> plans.ViewPlan:
        """Two large crops and eight small ones (section 3.1, appendix A); of the small ones any number will do."""
        return plans.dino(size)

    def forward(self, views: list[Tensor]) -> Tensor:
        """views: two (N, 3, H, W) batches of large crops, then small ones (N, 3, h, w). Returns the scalar loss.

        The teacher sees the large crops alone. Batch norm sees all crops of a size at once.
        """
        with torch.no_grad():
            teacher = self.teacher(torch.cat(views[:LARGE])).unflatten(0, (LARGE, -1))
        frozen = self.now["train_prototypes"] == 0
        student = self.head(self.features(views), frozen=frozen).unflatten(0, (len(views), -1))
        temp = self.now["teacher_temp"]
        told = self.loss.told(teacher, teacher_temp=temp) if self.watched else None
        loss: Tensor = self.loss(student, teacher, teacher_temp=temp)
        if told is not None:
            self.note_teacher(told, loss)
        return loss

    def after_step(self, progress: float) -> None:
        """The teacher follows the student."""
        self.teacher.update(self.student, momentum=self.now["momentum"])

    def pictures(self, views: list[Tensor]) -> dict[str, Tensor]:
        """Where the class token of a Vision Transformer looks."""
        return self.class_attention_pictures(views[0])
