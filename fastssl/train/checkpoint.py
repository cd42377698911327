"""Checkpoints: everything a run needs to go on as if it had never stopped."""

from __future__ import annotations

import pickle
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastssl.errors import UserError
from fastssl.files import atomic_write

FORMAT = 1


@dataclass(frozen=True)
class Checkpoint:
    """State of a run between two steps.

    Attributes:
        config: `fastssl.train.config.to_dict` of the run.
        model: the method's state dict: encoder (``encoder.*``), heads, buffers.
        optimizer: the optimizer's state dict.
        epoch: the epoch in progress, from 0; equal to ``config["epochs"]`` once the run is complete.
        step: steps done in that epoch.
        seconds: training time so far, evaluations left out.
        rng: `fastssl.train.reproduce.rng_state`.
        data: `fastssl.train.reproduce.fingerprint` of the training images.
        environment: `fastssl.train.reproduce.environment` of the last process that wrote it.
        format: version of this layout.
    """

    config: dict[str, Any]
    model: dict[str, Tensor]
    optimizer: dict[str, Any]
    epoch: int
    step: int
    seconds: float
    rng: dict[str, Tensor]
    data: str
    environment: dict[str, str]
    format: int = FORMAT

    @property
    def finished(self) -> bool:
        """Whether every epoch is done."""
        return self.epoch >= int(self.config["epochs"])


def write(checkpoint: Checkpoint, path: Path) -> None:
    """Saves to exactly ``path``; callers give it the temporary path of `fastssl.files.atomic_write`.

    Raises:
        OSError: if the file system refuses.
    """
    with path.open("wb") as file:  # given a path instead, torch hides the cause of a failed write
        torch.save({item.name: getattr(checkpoint, item.name) for item in fields(checkpoint)}, file)


def save(checkpoint: Checkpoint, path: Path) -> None:
    """Replaces ``path``, atomically.

    Raises:
        UserError: if the file system refuses; an older checkpoint stays.
    """
    with atomic_write(path) as partial:
        write(checkpoint, partial)


def load(path: Path) -> Checkpoint:
    """Reads tensors and plain values only, onto the CPU: a checkpoint from a stranger cannot run code.

    Raises:
        UserError: if there is none, or it is not one of ours.
    """
    if not path.is_file():
        raise UserError(
            f"{path.parent} holds no finished or interrupted run ({path.name} is missing): give the folder of a run"
        )
    try:
        values = torch.load(path, map_location="cpu", weights_only=True)
        found = values.get("format") if isinstance(values, dict) else None
    except (RuntimeError, pickle.UnpicklingError, EOFError, ValueError, OSError) as error:
        raise UserError(f"{path} cannot be read as a checkpoint: it is damaged, or not from fastssl") from error
    if found != FORMAT:
        raise UserError(
            f"{path} has checkpoint format {found}, this version reads {FORMAT}: use the fastssl that wrote it"
        )
    return Checkpoint(**values)
