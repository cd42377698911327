"""facebookresearch/dino: ``from fastssl.compat.facebook.dino import DINOLoss``."""

from __future__ import annotations

from torch import Tensor

from fastssl.compat._dino import DINOOfCrops


class DINOLoss(DINOOfCrops):
    """DINO's loss, student first, with a center (1, out_dim) that follows the teacher's mean in training.

    Runs on one process without torch.distributed; where it is initialised, the center is that of all processes.

    Args:
        out_dim: K, prototypes.
        ncrops: crops of the student; the first two are the teacher's.
        warmup_teacher_temp, teacher_temp, warmup_teacher_temp_epochs: the teacher's temperature goes from the first to
            the second over these epochs.
        nepochs: epochs of the training.
        student_temp: finite, > 0.
        center_momentum: in [0, 1].
    Raises:
        ValueError: for other temperatures or momenta, sizes below 1, or fewer epochs than the warmup has.
    """

    def __init__(
        self,
        out_dim: int,
        ncrops: int,
        warmup_teacher_temp: float,
        teacher_temp: float,
        warmup_teacher_temp_epochs: int,
        nepochs: int,
        student_temp: float = 0.1,
        center_momentum: float = 0.9,
    ) -> None:
        temperatures = (warmup_teacher_temp, teacher_temp, warmup_teacher_temp_epochs, nepochs)
        super().__init__(out_dim, ncrops, temperatures, student_temp, center_momentum)
        self.ncrops = ncrops

    def forward(self, student_output: Tensor, teacher_output: Tensor, epoch: int) -> Tensor:
        """student_output: (ncrops N, K) logits, crop after crop; teacher_output: (2 N, K), without gradient.

        Returns the scalar mean loss in nats, in float32 (float64 for float64 students).

        Raises:
            TypeError, ValueError: for logits that are not so many crops of one batch, of other prototypes or another
                device than the center's, or an epoch outside the training; over several processes on each, naming the
                ranks, if one has such input or they differ in shapes or dtypes.
        """
        return self.of_epoch(student_output, teacher_output, epoch)
