"""A run that has been trained, opened for use."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from torch import nn

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
        """What pretraining was for: images to features. Its weights can be trained further, a teacher's too."""
        if self.method.kept is self.method.encoder:
            return self.method.encoder
        encoder = copy.deepcopy(self.method.encoder)
        encoder.load_state_dict(self.method.kept.state_dict())
        return encoder

    def random_encoder(self) -> nn.Module:
        """The encoder as it was before the first step."""
        return build_method(self.config).encoder.eval()


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
