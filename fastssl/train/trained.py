"""A run that has been trained, opened for use."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from torch import nn

from fastssl import models
from fastssl.methods import Method
from fastssl.train import checkpoint as checkpoints
from fastssl.train import config as configs
from fastssl.train.checkpoint import Checkpoint
from fastssl.train.config import RunConfig
from fastssl.train.folder import RunFolder
from fastssl.train.loop import build_method


@dataclass(frozen=True)
class Trained:
    """A run's method and encoder with all that is known about them.

    Attributes:
        method: with the weights of the last checkpoint, in evaluation mode, on the CPU.
    """

    folder: RunFolder
    config: RunConfig
    checkpoint: Checkpoint
    method: Method

    @cached_property
    def encoder(self) -> nn.Module:
        """What pretraining was for: images to features. All its weights can be trained further, a teacher's too."""
        encoder = self._trainable(self.method.encoder)
        encoder.load_state_dict(self.method.kept.state_dict())
        return encoder

    def untrained(self) -> Method:
        """The method as it was before the first step, in evaluation mode, on the CPU."""
        return build_method(self.config).eval()

    def random_encoder(self) -> nn.Module:
        """The encoder as it was before the first step."""
        return self._trainable(self.untrained().encoder)

    def _trainable(self, encoder: nn.Module) -> nn.Module:
        """A copy that has its hooks, and in which nothing is frozen that a method may have, as MoCo v3 its patches."""
        encoder = copy.deepcopy(encoder)
        for name, weight in models.get(self.config.encoder)(**self.config.encoder_options()).named_parameters():
            encoder.get_parameter(name).requires_grad_(weight.requires_grad)
        return encoder


def open_run(path: Path) -> Trained:
    """The run in folder ``path``, complete or not.

    Raises:
        UserError: if the folder holds no readable checkpoint.
    """
    folder = RunFolder(path)
    checkpoint = checkpoints.load(folder.checkpoint)
    config = configs.from_dict(checkpoint.config)
    method = build_method(config)
    method.load_state_dict(checkpoint.model)
    return Trained(folder, config, checkpoint, method.eval())
