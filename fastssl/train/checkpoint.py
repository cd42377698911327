"""Checkpoints: everything a run needs to go on as if it had never stopped."""

from __future__ import annotations

import errno
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
    values = {item.name: getattr(checkpoint, item.name) for item in fields(checkpoint)}
    with path.open("wb") as file:
        try:
            torch.save(values, file)
        except RuntimeError as error:  # torch hides a failed write behind an error of its own
            cause = error.__context__
            raise (cause if isinstance(cause, OSError) else OSError(errno.EIO, str(error).splitlines()[0])) from None


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
    except Exception as error:  # what damaged bytes raise depends on the bytes
        raise UserError(f"{path} cannot be read as a checkpoint: it is damaged, or not from fastssl") from error
    if found != FORMAT:
        raise UserError(
            f"{path} has checkpoint format {found}, this version reads {FORMAT}: use the fastssl that wrote it"
        )
    return Checkpoint(**values)
