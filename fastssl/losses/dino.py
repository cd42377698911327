"""DINO's loss, with the center that keeps its teacher from collapsing, or Sinkhorn-Knopp in its place."""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
import torch.distributed as dist
from torch import Tensor

from fastssl import ops
from fastssl.losses import _group, _rows
from fastssl.losses._group import Group
from fastssl.ops import _check

Centering = Literal["center", "sinkhorn"]
CENTERINGS = get_args(Centering)
SINKHORN_ITERATIONS = 3  # as SwAV and DINOv2 have it


class Centered(_group.OverGroup):
    """A loss with a center, which stays in float32 at least when the module is cast: a narrower one would not move.

    ``center`` is a buffer of K numbers, whatever dimensions of 1 lie around them.
    """

    center: Tensor
    center_momentum: float
    student_temp: float

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        before = self.center
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if self.center.dtype in (torch.bfloat16, torch.float16):
            self.center = before.to(self.center.device)
        return self

    def centered_loss(
        self, student: Tensor, teacher: Tensor, teacher_temp: float, processes: dist.ProcessGroup | None
    ) -> Tensor:
        """The loss of (S, B, K) and (T, B, K) logits; in training the center then moves."""
        loss = ops.distillation_loss(
            student,
            teacher,
            student_temp=self.student_temp,
            teacher_temp=teacher_temp,
            center=self.center.flatten(),
        )
        if self.training:
            self.move_center(teacher, processes)
        return loss

    def settings(self) -> dict[str, object]:
        """What must be the same on all processes."""
        return dict(student_temp=self.student_temp, center_momentum=self.center_momentum, center=self.center)

    @torch.no_grad()
    def move_center(self, teacher: Tensor, processes: dist.ProcessGroup | None) -> None:
        """Moves the center in place towards the mean of (..., K) logits, and of those of the other processes."""
        center = self.center.view(-1)
        # rounded where it is float64 and the center is not
        narrowed = teacher.to(center.dtype) if teacher.dtype == torch.float64 else teacher
        ops.update_center_(center, narrowed.detach(), self.center_momentum)
        if processes is not None:  # all moved from the same center: their mean moved to the mean of all
            dist.all_reduce(center, group=processes)
            center /= dist.get_world_size(processes)

    def check_prototypes(self, name: str, logits: Tensor, is_used: bool = True) -> None:
        """Logits must have the center's prototypes, and lie where it does if it is used."""
        count = self.center.shape[-1]
        if logits.shape[-1] != count:
            raise ValueError(f"DINOLoss: {name} must have {count} prototypes; got {_check.shape(logits)}")
        if is_used:
            _check.one_device("DINOLoss", (name, logits), ("the center", self.center))


class DINOLoss(Centered):
    """Cross-entropy of every student crop to every other teacher crop (DINO, arXiv:2104.14294, algorithm 1).

    The teacher's logits are centred: by the moving average of their mean (eq. 4), which in training the call updates
    after the loss and which is a buffer, saved with the module; or by Sinkhorn-Knopp over the batch (DINOv2,
    arXiv:2304.07193, section 4). With the center no softmax over the prototypes is stored. Sinkhorn-Knopp stores the
    teacher's assignment, (T, B, K) in float32; over a group each process computes that of all, (W T B, K).

    Args:
        num_prototypes: K.
        student_temp: finite, > 0; the paper uses 0.1.
        teacher_temp: finite, > 0; the paper uses 0.04, and warms up to 0.07 for ViTs: give it to the call then.
        centering: "center" or "sinkhorn".
        center_momentum: in [0, 1]; the paper uses 0.9.
        group: None, or "world" or a process group, over all of whose rows the center or Sinkhorn-Knopp is computed.
            The mean of the losses over the processes is the loss of the whole batch.
    Raises:
        ValueError: for temperatures that are not finite and positive, another centering, a momentum outside [0, 1], or
            fewer than one prototype.
    """

    center: Tensor  # (K) float32 or float64

    def __init__(
        self,
        num_prototypes: int,
        *,
        student_temp: float = 0.1,
        teacher_temp: float = 0.04,
        centering: str = "center",
        center_momentum: float = 0.9,
        group: Group = None,
    ) -> None:
        super().__init__()
        owner = "DINOLoss"
        if _check.whole(owner, "num_prototypes", num_prototypes) < 1:
            raise ValueError(f"{owner}: num_prototypes must be at least 1; got {num_prototypes}")
        if centering not in CENTERINGS:
            raise ValueError(f"{owner}: centering must be one of {', '.join(CENTERINGS)}; got {centering!r}")
        self.student_temp = _check.positive(owner, "student_temp", student_temp)
        self.teacher_temp = _check.positive(owner, "teacher_temp", teacher_temp)
        self.center_momentum = _check.momentum(owner, center_momentum, "center_momentum")
        self.centering, self.group = centering, group
        self.register_buffer("center", torch.zeros(num_prototypes))

    def forward(self, student: Tensor, teacher: Tensor, *, teacher_temp: float | None = None) -> Tensor:
        """student: (S, B, K) logits of S crops of B samples; teacher: (T, B, K) logits of the first T of these crops.

        ``torch.stack`` makes one of a list with (B, K) for each crop. The teacher gets no gradient. ``teacher_temp``
        takes the place of the module's for this call. Returns the scalar mean loss in nats.

        Raises:
            TypeError: for logits that are no floating-point tensors, or a float64 teacher of a student that is not.
            ValueError: for other shapes, nothing in them, two devices, other prototypes than the module's, a single
                crop on both sides, more of the teacher than of the student, or a temperature that is not finite and
                positive; with a group on every process, naming the ranks, if one has such input or they differ in
                shapes or dtypes.
            RuntimeError: for a group before torch.distributed is initialised, or on a second derivative, which is not
                supported.
        """
        owner, processes = "DINOLoss", _group.resolved("DINOLoss", self.group)
        temp = self.teacher_temp if teacher_temp is None else teacher_temp

        def check() -> tuple[Tensor, Tensor]:
            _check.crops(owner, student, teacher)
            if len(teacher) > len(student):
                raise ValueError(
                    f"{owner}: the teacher's crops must be the first of the student's; got student "
                    f"{_check.shape(student)} and teacher {_check.shape(teacher)}"
                )
            self.check_prototypes("student", student, self.centering == "center")
            _check.positive(owner, "teacher_temp", temp)
            return student, teacher.detach()

        student, teacher = _group.agreed(
            owner,
            processes,
            check,
            training=self.training,
            centering=self.centering,
            teacher_temp=temp,
            **self.settings(),
        )
        if self.centering == "sinkhorn":
            assigned = _assigned(teacher, temp, processes)
            return ops.distillation_loss(student, assigned, student_temp=self.student_temp, teacher_temp=None)
        return self.centered_loss(student, teacher, temp, processes)

    @torch.no_grad()
    def told(self, teacher: Tensor, *, teacher_temp: float | None = None) -> Tensor:
        """What the student is taught: probabilities, which ``forward`` itself does not store. For diagnostics.

        Args:
            teacher: (T, B, K) logits, before ``forward`` moves the center by them; of this process alone.
            teacher_temp: as for ``forward``.
        Returns:
            (T, B, K) float32 or float64, that add up to 1 over K.
        """
        temp = self.teacher_temp if teacher_temp is None else teacher_temp
        if self.centering == "sinkhorn":
            return _assigned(teacher, temp, None)
        return torch.softmax((_rows.widened(teacher) - self.center) / temp, dim=-1)

    @torch.no_grad()
    def update_center(self, teacher: Tensor) -> None:
        """Moves the center towards the mean of (T, B, K) logits, and of those of the other processes of the group.

        Raises:
            TypeError, ValueError: for logits that are not floating-point, empty, of other prototypes or of another
                device; over a group as ``forward``.
        """
        owner, processes = "DINOLoss", _group.resolved("DINOLoss", self.group)

        def check() -> tuple[Tensor]:
            _rows.not_empty(owner, _check.float_tensor(owner, "teacher", teacher, "TBK"))
            self.check_prototypes("teacher", teacher, self.centering == "center")
            return (teacher,)

        self.move_center(*_group.agreed(owner, processes, check, **self.settings()), processes)

    def extra_repr(self) -> str:
        return (
            f"{len(self.center)}, student_temp={self.student_temp}, teacher_temp={self.teacher_temp}, "
            f"centering={self.centering!r}, center_momentum={self.center_momentum}{self.told_group()}"
        )


def _assigned(teacher: Tensor, temp: float, processes: dist.ProcessGroup | None) -> Tensor:
    """Sinkhorn-Knopp over the rows of all crops, and of all processes: (T, B, K) probabilities."""
    rows = teacher.flatten(0, 1)
    if processes is None:
        return ops.sinkhorn_knopp(rows, temp=temp, iterations=SINKHORN_ITERATIONS).view_as(teacher)
    everyones = ops.sinkhorn_knopp(_group.gathered(rows, processes), temp=temp, iterations=SINKHORN_ITERATIONS)
    return everyones[_group.place(rows, processes)].view_as(teacher)
