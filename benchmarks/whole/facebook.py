"""DINO's loss in the form of Facebook's repository: crops one after another, student first, and the center moves.

The repository is no package to install: theirs is the ops' reference, which is arranged as theirs, pair by pair.
"""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.harness import Case
from benchmarks.losses import Loss, forward_backward, whole
from benchmarks.ops.distillation_loss import STUDENT_TEMP, STUDENTS, TEACHER_TEMP, TEACHERS, pair_by_pair
from benchmarks.ops.distillation_loss import inputs as logits
from fastssl.compat.facebook.dino import DINOLoss
from fastssl.ops.update_center import reference as update_center  # type: ignore[attr-defined]

MOMENTUM = 0.9


def crops(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """(crops B, K) as (crops, B, K)."""
    return student.unflatten(0, (STUDENTS, -1)), teacher.unflatten(0, (TEACHERS, -1))


def theirs() -> Loss:
    def loss(student: Tensor, teacher: Tensor, center: Tensor) -> Tensor:
        student, teacher = crops(student, teacher)
        found, moving = pair_by_pair(student, teacher, center), center.clone()
        with torch.no_grad():
            update_center(moving, teacher, MOMENTUM)
        return found

    return loss


def ours(prototypes: int) -> Loss:
    criterion = DINOLoss(prototypes, STUDENTS, TEACHER_TEMP, TEACHER_TEMP, 0, 1, STUDENT_TEMP, MOMENTUM)

    def loss(student: Tensor, teacher: Tensor, center: Tensor) -> Tensor:
        criterion.center.copy_(center)
        found: Tensor = criterion(student, teacher, 0)
        return found

    return loss


def exact(student: Tensor, teacher: Tensor, center: Tensor) -> Tensor:
    return pair_by_pair(*crops(student.double(), teacher.double()), center.double())


def dino(batch: int, prototypes: int) -> Case:
    def inputs() -> list[Tensor]:
        student, teacher, center = logits(batch, prototypes, torch.float32)
        return [student.flatten(0, 1).requires_grad_(), teacher.flatten(0, 1), center]

    return Case(
        op="facebook",
        shape=f"DINOLoss crops={STUDENTS}+{TEACHERS} batch={batch} prototypes={prototypes}",
        dtype="float32",
        providers=whole("DINO's formula, pair by pair", lambda: ours(prototypes), theirs, inputs),
        exact=lambda: forward_backward(exact, *inputs())(),
        peak=True,
    )


def cases() -> list[Case]:
    return [dino(64, 65536)]
