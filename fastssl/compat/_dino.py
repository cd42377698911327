"""What DINO's loss in Facebook's and solo-learn's form have in common: crops one after another, and a schedule."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from fastssl.compat._processes import everyone
from fastssl.losses import _group, _rows
from fastssl.losses.dino import Centered
from fastssl.ops import _check

OWNER = "DINOLoss"
LARGE_CROPS = 2  # those that the teacher sees


class DINOOfCrops(Centered):
    """DINO's loss (arXiv:2104.14294, algorithm 1) of crops in one tensor, with the teacher's temperature by epoch.

    The center follows the mean of the teacher's logits, of all processes, in training only; it is a buffer.
    """

    center: Tensor  # (1, K)

    def __init__(
        self,
        prototypes: int,
        crops: int,
        temperatures: tuple[float, float, int, int],
        student_temp: float,
        center_momentum: float,
    ) -> None:
        """``temperatures``: from the first to the second over the epochs of the third; the fourth is all epochs."""
        super().__init__()
        for name, number in (("prototypes", prototypes), ("crops", crops)):
            if _check.whole(OWNER, name, number) < 1:
                raise ValueError(f"{OWNER}: {name} must be at least 1; got {number}")
        first, last, warmup, epochs = temperatures
        for name, temp in (("warmup_teacher_temp", first), ("teacher_temp", last), ("student_temp", student_temp)):
            _check.positive(OWNER, name, temp)
        if not 0 <= _check.whole(OWNER, "warmup_teacher_temp_epochs", warmup) <= _check.whole(OWNER, "epochs", epochs):
            raise ValueError(f"{OWNER}: of {epochs} epochs, {warmup} cannot be for the teacher's warmup")
        self.student_temp, self._crops = student_temp, crops
        self.center_momentum = _check.momentum(OWNER, center_momentum, "center_momentum")
        self.teacher_temp_schedule = np.concatenate((np.linspace(first, last, warmup), np.full(epochs - warmup, last)))
        self.register_buffer("center", torch.zeros(1, prototypes))

    def of_epoch(self, student_output: Tensor, teacher_output: Tensor, epoch: int) -> Tensor:
        """student_output: (crops N, K) logits; teacher_output: (2 N, K), of the first two crops. Returns the loss."""
        processes = _group.resolved(OWNER, everyone())

        def check() -> tuple[Tensor, Tensor]:
            epochs = len(self.teacher_temp_schedule)
            if not 0 <= _check.whole(OWNER, "epoch", epoch) < epochs:
                raise ValueError(f"{OWNER}: epoch must be in [0, {epochs}); got {epoch}")
            student = _by_crop("student_output", student_output, self._crops)
            self.check_prototypes("student_output", student_output)
            return _check.crops(OWNER, student, _by_crop("teacher_output", teacher_output, LARGE_CROPS).detach())

        student, teacher = _group.agreed(
            OWNER,
            processes,
            check,
            training=self.training,
            epoch=epoch,
            teacher_temp=lambda: self.teacher_temp_schedule[epoch],
            **self.settings(),
        )
        return self.centered_loss(student, teacher, float(self.teacher_temp_schedule[epoch]), processes)

    @torch.no_grad()
    def update_center(self, teacher_output: Tensor) -> None:
        """Moves the center towards the mean of (2 N, K) logits, and of those of the other processes."""
        processes = _group.resolved(OWNER, everyone())

        def check() -> tuple[Tensor]:
            found = _check.float_tensor(OWNER, "teacher_output", teacher_output, "NK")
            self.check_prototypes("teacher_output", found)
            return (_rows.not_empty(OWNER, found),)

        self.move_center(*_group.agreed(OWNER, processes, check, **self.settings()), processes)


def _by_crop(name: str, logits: Tensor, crops: int) -> Tensor:
    """(crops N, K) as (crops, N, K)."""
    _check.float_tensor(OWNER, name, logits, "NK")
    if len(logits) == 0 or len(logits) % crops:
        raise ValueError(
            f"{OWNER}: {name} must be {crops} crops of as many samples, one after another; got {_check.shape(logits)}"
        )
    return logits.reshape(crops, len(logits) // crops, logits.shape[1])
