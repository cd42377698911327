"""lightly's DINO loss."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastssl.compat._processes import everyone
from fastssl.losses import _group, _rows
from fastssl.losses.dino import Centered
from fastssl.ops import _check

OWNER = "DINOLoss"


class DINOLoss(Centered):
    """DINO's loss, teacher first, with a center (1, 1, K) that follows the teacher's mean in training.

    Where torch.distributed is initialised, the center is that of all its processes.

    Args:
        output_dim: K.
        warmup_teacher_temp, warmup_teacher_temp_epochs: where the teacher's temperature begins, and for how many
            epochs it goes to ``teacher_temp``, if the call tells the epoch.
        student_temp: finite, > 0.
        center_momentum: in [0, 1].
        center_mode: "mean".
    Raises:
        ValueError: for other temperatures, momenta or modes, or fewer than one prototype.
    """

    center: Tensor

    def __init__(
        self,
        output_dim: int = 65536,
        warmup_teacher_temp: float = 0.04,
        teacher_temp: float = 0.04,
        warmup_teacher_temp_epochs: int = 30,
        student_temp: float = 0.1,
        center_momentum: float = 0.9,
        center_mode: str = "mean",
    ) -> None:
        super().__init__()
        if center_mode != "mean":
            raise ValueError(f"Unknown mode '{center_mode}'. Valid modes are ['mean'].")
        if _check.whole(OWNER, "output_dim", output_dim) < 1:
            raise ValueError(f"{OWNER}: output_dim must be at least 1; got {output_dim}")
        for name, temp in (
            ("warmup_teacher_temp", warmup_teacher_temp),
            ("teacher_temp", teacher_temp),
            ("student_temp", student_temp),
        ):
            _check.positive(OWNER, name, temp)
        self.teacher_temp, self.student_temp = teacher_temp, student_temp
        self.center_momentum = _check.momentum(OWNER, center_momentum, "center_momentum")
        self.warmup_teacher_temp_epochs = warmup_teacher_temp_epochs
        self.teacher_temp_schedule = torch.linspace(warmup_teacher_temp, teacher_temp, warmup_teacher_temp_epochs)
        self.register_buffer("center", torch.zeros(1, 1, output_dim))

    def forward(
        self,
        teacher_out: list[Tensor],
        student_out: list[Tensor],
        teacher_temp: float | None = None,
        epoch: int | None = None,
    ) -> Tensor:
        """Lists of (N, K), a view each: the views that the teacher sees first among the student's.

        Returns the scalar mean loss in nats, in float32 (float64 for float64 students).

        Raises:
            TypeError, ValueError: for no view, views of two shapes or dtypes, a single view on both sides, other
                prototypes or another device than the center's, or a temperature that is not finite and positive; over
                several processes on each, naming the ranks, if one has such input or they differ in shapes or dtypes.
        """
        processes = _group.resolved(OWNER, everyone())

        def check() -> tuple[Tensor, Tensor]:
            _check.positive(OWNER, "teacher_temp", self._temperature(teacher_temp, epoch))
            student = _stacked("student_out", student_out)
            self.check_prototypes("student_out", student)
            return _check.crops(OWNER, student, _stacked("teacher_out", teacher_out).detach())

        student, teacher = _group.agreed(
            OWNER,
            processes,
            check,
            training=self.training,
            teacher_temp=lambda: self._temperature(teacher_temp, epoch),
            **self.settings(),
        )
        return self.centered_loss(student, teacher, self._temperature(teacher_temp, epoch), processes)

    def _temperature(self, of_the_call: float | None, epoch: int | None) -> float:
        if of_the_call is not None:
            return of_the_call
        warm = epoch is None or epoch >= self.warmup_teacher_temp_epochs
        return self.teacher_temp if warm else float(self.teacher_temp_schedule[epoch])

    @torch.no_grad()
    def update_center(self, teacher_out: Tensor) -> None:
        """Moves the center towards the mean of (T, N, K), and of those of the other processes.

        Raises:
            TypeError, ValueError: for logits of another shape or dtype, or of other prototypes or another device than
                the center's; over several processes as ``forward``.
        """
        processes = _group.resolved(OWNER, everyone())

        def check() -> tuple[Tensor]:
            found = _rows.not_empty(OWNER, _check.float_tensor(OWNER, "teacher_out", teacher_out, "TNK"))
            self.check_prototypes("teacher_out", found)
            return (found,)

        self.move_center(*_group.agreed(OWNER, processes, check, **self.settings()), processes)


def _stacked(name: str, views: Sequence[Tensor]) -> Tensor:
    """Views (N, K) as (views, N, K)."""
    if len(views) == 0:
        raise ValueError(f"{OWNER}: {name} needs at least one view; got none")
    first = _check.float_tensor(OWNER, name, views[0], "NK")
    for view in views[1:]:
        _check.alike(OWNER, (name, first), (name, _check.float_tensor(OWNER, name, view, "NK")))
        if view.shape != first.shape:
            raise ValueError(
                f"{OWNER}: the views of {name} must have one shape; got {_check.shape(first)} and {_check.shape(view)}"
            )
    return torch.stack(list(views))
