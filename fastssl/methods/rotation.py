"""Rotation: by how many quarters was an image turned? (RotNet; Gidaris et al., arXiv:1803.07728).

Recipe:
    fastssl pretrain rotation --data clipart
    fastssl pretrain rotation --config benchmarks/recipes/cifar10/rotation.yaml --data cifar10
        CIFAR-10 on two CPU cores: 5.5 minutes, kNN 41.9 % (untrained 28.4 %); docs/scores.md.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fastssl.data import plans
from fastssl.errors import UserError
from fastssl.methods.base import Method
from fastssl.models import feature_dim
from fastssl.models.attention import attention_maps, heat

ROTATIONS = 4


@dataclass(frozen=True)
class RotationConfig:
    """RotNet has no hyper-parameters of its own: its four turns, of 0, 90, 180 and 270 degrees, are its views."""


class Rotation(Method):
    """RotNet (arXiv:1803.07728, equations 1 to 3): classify the turn of an image, all four turns in each batch.

    A quarter turn moves pixels and resamples none, so no trace of an interpolation tells it; only what is seen does.
    """

    Config = RotationConfig

    def __init__(self, encoder: nn.Module, config: RotationConfig) -> None:
        super().__init__(encoder, config)
        self.head = nn.Linear(feature_dim(encoder), ROTATIONS)

    @classmethod
    def view_plan(cls, size: int) -> plans.ViewPlan:
        """Four views, the k-th turned by k quarters against the clock."""
        return plans.rotation(size)

    @classmethod
    def check_plan(cls, plan: plans.ViewPlan) -> None:
        """The turns are what is told apart: no others will do."""
        turns = [part.rot90 for part in plan.parts for _ in range(part.views)]
        if turns != [(turn,) for turn in range(ROTATIONS)]:
            got = ", ".join(" or ".join(map(str, turn)) for turn in turns)
            raise UserError(
                f"rotation learns to tell views turned by 0, 1, 2, 3 quarters, in this order; rot90 turns them by {got}"
            )

    def forward(self, views: list[Tensor]) -> Tensor:
        """views: four (N, 3, H, H) batches, by turn. Returns the scalar loss; batch norm sees all turns at once."""
        logits = self.head(self.encoder(torch.cat(views)))
        turns = torch.arange(ROTATIONS, device=logits.device).repeat_interleave(len(views[0]))
        return self.classification_loss(logits, turns)

    def pictures(self, views: list[Tensor]) -> dict[str, Tensor]:
        """``image``, upright, and for each stage of the encoder, if it has stages, what attracts its attention."""
        upright = views[0]
        if not hasattr(self.encoder, "stages"):
            return {}
        mean, std = (
            torch.tensor(values, device=upright.device).view(3, 1, 1)
            for values in (plans.IMAGENET_MEAN, plans.IMAGENET_STD)
        )
        visible = upright * std + mean
        drawn = [(heat(visible, attention) - mean) / std for attention in attention_maps(self.encoder, upright)]
        return {"image": upright} | {f"stage {i}": picture for i, picture in enumerate(drawn, start=1)}
