"""SimCLR, MoCo v2 and DINO of lightly's heads, losses and helpers, put together as its own benchmarks do.

Each has the settings of ours and is trained by the same loop, so that the two can be set side by side.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import rivals
from fastssl.methods import Method
from fastssl.methods.dino import DINO, LARGE, DINOConfig
from fastssl.methods.moco import MoCo, MoCoConfig
from fastssl.methods.simclr import SimCLR, SimCLRConfig
from fastssl.models import feature_dim


class LightlySimCLR(Method):
    """lightly's SimCLR. The last shift of its head stays 0: the authors' code has none, nor has ours."""

    Config = SimCLRConfig

    def __init__(self, encoder: nn.Module, config: SimCLRConfig) -> None:
        super().__init__(encoder, config)
        dim = feature_dim(encoder)
        heads = rivals.load("lightly.models.modules.heads")
        self.head = heads.SimCLRProjectionHead(dim, config.hidden_dim or dim, config.out_dim, config.head_layers)
        self.head.layers[-1].bias.requires_grad_(False)
        self.loss = rivals.load("lightly.loss").NTXentLoss(config.temperature)

    def forward(self, views: list[Tensor]) -> Tensor:
        loss: Tensor = self.loss(*self.head(self.encoder(torch.cat(views))).chunk(2))
        return loss

    def start_as(self, ours: SimCLR) -> None:
        self.encoder.load_state_dict(ours.encoder.state_dict())
        self.head.layers.load_state_dict(ours.head.layers.state_dict(), strict=False)


class LightlyMoCo(Method):
    """lightly's MoCo v2 on one device, where its keys' batch normalisation sees the whole batch, shuffled."""

    Config = MoCoConfig

    def __init__(self, encoder: nn.Module, config: MoCoConfig) -> None:
        super().__init__(encoder, config)
        dim = feature_dim(encoder)
        self.head = rivals.load("lightly.models.modules.heads").MoCoProjectionHead(
            dim, config.hidden_dim or dim, config.out_dim, config.head_layers
        )
        self.key_encoder, self.key_head = (followed(network) for network in (encoder, self.head))
        self.loss = rivals.load("lightly.loss").NTXentLoss(config.temperature, (config.queue, config.out_dim))
        self.utils = rivals.load("lightly.models.utils")

    def forward(self, views: list[Tensor]) -> Tensor:
        query = self.head(self.encoder(views[0]))
        with torch.no_grad():
            shuffled, order = self.utils.batch_shuffle(views[1])
            key = self.utils.batch_unshuffle(self.key_head(self.key_encoder(shuffled)), order)
        loss: Tensor = self.loss(query, key)
        return loss

    def after_step(self, progress: float) -> None:
        pairs = (self.encoder, self.key_encoder), (self.head, self.key_head)
        follow(self.utils.update_momentum, pairs, self.now["momentum"])

    def start_as(self, ours: MoCo) -> None:
        for network in (self.encoder, self.key_encoder):
            network.load_state_dict(ours.encoder.state_dict())
        for head in (self.head, self.key_head):
            head.layers.load_state_dict(ours.head.layers.state_dict())
        self.loss.memory_bank.bank.copy_(ours.loss.queue)


class LightlyDINO(Method):
    """lightly's DINO, with the teacher's temperature of each step as ours has it."""

    Config = DINOConfig

    def __init__(self, encoder: nn.Module, config: DINOConfig) -> None:
        super().__init__(encoder, config)
        dim = feature_dim(encoder)
        widths = dim, config.hidden_dim or min(2048, 4 * dim), config.bottleneck_dim, config.prototypes
        # two, and no copy: torch copies no weight that a hook computes
        self.head, self.teacher_head = (
            rivals.load("lightly.models.modules.heads").DINOProjectionHead(*widths) for _ in range(2)
        )
        self.teacher = followed(encoder)
        self.teacher_head.requires_grad_(False)
        self.loss = rivals.load("lightly.loss").DINOLoss(
            config.prototypes, student_temp=config.student_temp, center_momentum=config.center_momentum
        )
        self.utils = rivals.load("lightly.models.utils")

    def forward(self, views: list[Tensor]) -> Tensor:
        with torch.no_grad():
            teacher = self.teacher_head(self.teacher(torch.cat(views[:LARGE]))).chunk(LARGE)
        student = self.head(self.features(views)).chunk(len(views))
        loss: Tensor = self.loss(list(teacher), list(student), teacher_temp=self.now["teacher_temp"])
        return loss

    def after_step(self, progress: float) -> None:
        pairs = (self.encoder, self.teacher), (self.head, self.teacher_head)
        follow(self.utils.update_momentum, pairs, self.now["momentum"])

    def start_as(self, ours: DINO) -> None:
        for network in (self.encoder, self.teacher):
            network.load_state_dict(ours.encoder.state_dict())
        for head in (self.head, self.teacher_head):
            head.layers.load_state_dict(ours.head.mlp.state_dict())
            head.last_layer.weight_v.data.copy_(ours.head.prototypes.weight)


METHODS: dict[str, type[Any]] = {"simclr": LightlySimCLR, "moco": LightlyMoCo, "dino": LightlyDINO}


def followed(network: nn.Module) -> nn.Module:
    """A copy without gradient."""
    return copy.deepcopy(network).requires_grad_(False)


def follow(update: Callable[..., None], pairs: Iterable[tuple[nn.Module, nn.Module]], momentum: float) -> None:
    for network, average in pairs:
        update(network, average, m=momentum)


def lightlys(ours: Method, name: str) -> Method:
    """lightly's method ``name``, with the settings, weights, queue and center that ``ours`` has now."""
    theirs: Method = METHODS[name](copy.deepcopy(ours.encoder), ours.config)
    with torch.no_grad():
        theirs.start_as(ours)  # type: ignore[operator]
    return theirs
