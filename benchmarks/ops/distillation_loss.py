"""DINO's loss, forward and backward: two global crops of the teacher, these and eight local ones of the student."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks import rivals, where
from benchmarks.harness import OURS, Case, Work
from fastssl import ops
from fastssl.ops.distillation_loss import reference  # type: ignore[attr-defined]

STUDENTS, TEACHERS = 10, 2
STUDENT_TEMP, TEACHER_TEMP = 0.1, 0.04
Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


def ours(student: Tensor, teacher: Tensor, center: Tensor) -> Tensor:
    return ops.distillation_loss(student, teacher, student_temp=STUDENT_TEMP, teacher_temp=TEACHER_TEMP, center=center)


def pair_by_pair(student: Tensor, teacher: Tensor, center: Tensor) -> Tensor:
    """As DINO's own repository arranges it."""
    return reference(student, teacher, center, STUDENT_TEMP, TEACHER_TEMP)


def all_pairs(student: Tensor, teacher: Tensor, center: Tensor) -> Tensor:
    """As DINOv3's repository arranges it: one product of all softmaxes, in float32, its diagonal left out."""
    p = torch.softmax((teacher.float() - center) / TEACHER_TEMP, dim=-1)
    log_q = torch.log_softmax(student.float() / STUDENT_TEMP, dim=-1)
    losses = -torch.einsum("sbk,tbk->st", log_q, p)
    return (losses.sum() - losses.diagonal().sum()) / (student.shape[1] * (STUDENTS * TEACHERS - TEACHERS))


def inputs(batch: int, prototypes: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    generator = where.generator()
    student, teacher = (torch.randn(n, batch, prototypes, generator=generator).to(dtype) for n in (STUDENTS, TEACHERS))
    return student, teacher, 0.1 * torch.randn(prototypes, generator=generator)


def forward_backward(function: Loss, batch: int, prototypes: int, dtype: torch.dtype) -> Work:
    student, teacher, center = inputs(batch, prototypes, dtype)
    student.requires_grad_()

    def work() -> tuple[Tensor, ...]:
        student.grad = None
        loss = function(student, teacher, center)
        loss.backward()
        return loss.detach(), student.grad

    return work


def exact(batch: int, prototypes: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    def widened(student: Tensor, teacher: Tensor, center: Tensor) -> Tensor:
        return pair_by_pair(student.double(), teacher.double(), center.double())

    return forward_backward(widened, batch, prototypes, dtype)()


def lightly(batch: int, prototypes: int, dtype: torch.dtype) -> Work:
    """lightly's own class, with a center that stays; it takes lists of crops."""
    criterion = rivals.load("lightly.loss").DINOLoss(prototypes, student_temp=STUDENT_TEMP, center_momentum=1.0)

    def function(student: Tensor, teacher: Tensor, center: Tensor) -> Tensor:
        criterion.center.copy_(center)
        loss: Tensor = criterion(list(teacher), list(student), teacher_temp=TEACHER_TEMP)
        return loss

    return forward_backward(function, batch, prototypes, dtype)


def providers(batch: int, prototypes: int, dtype: torch.dtype) -> dict[str, Callable[[], Work]]:
    functions: dict[str, Callable[[], Loss]] = {
        OURS: lambda: ours,
        "torch eager, pairs (DINO)": lambda: pair_by_pair,
        "torch eager, einsum (DINOv3)": lambda: all_pairs,
        "torch.compile, pairs": lambda: where.compiled(pair_by_pair),
        "torch.compile, einsum": lambda: where.compiled(all_pairs),
    }
    ours_and_torch = {
        name: functools.partial(lambda function: forward_backward(function(), batch, prototypes, dtype), function)
        for name, function in functions.items()
    }
    return {**ours_and_torch, "lightly DINOLoss": functools.partial(lightly, batch, prototypes, dtype)}


def cases() -> list[Case]:
    return [
        Case(
            op="distillation_loss",
            shape=f"crops={STUDENTS}+{TEACHERS} batch={batch} prototypes={prototypes}",
            dtype=str(dtype).removeprefix("torch."),
            providers=providers(batch, prototypes, dtype),
            exact=functools.partial(exact, batch, prototypes, dtype),
            # both directions read all rows, the backward writes the student's gradient
            bytes_moved=(3 * STUDENTS + 2 * TEACHERS) * batch * prototypes * dtype.itemsize,
            # of each row once, which the gradient could take over from the loss
            exponentials=(STUDENTS + TEACHERS) * batch * prototypes,
            peak=True,
        )
        for batch, prototypes, dtype in where.sizes(
            cpu=((64, 65536, torch.float32), (64, 65536, torch.bfloat16), (8, 1024, torch.float32)),
            gpu=((64, 65536, torch.bfloat16), (64, 65536, torch.float32)),
            small=((2, 64, torch.bfloat16),),
        )
    ]
