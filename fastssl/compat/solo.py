"""solo-learn's losses: ``from fastssl.compat.solo import simclr_loss_func``.

As there, those with terms across samples take all processes of torch.distributed, where it is initialised: the mean of
their losses is that of one process with the whole batch, and so is its gradient.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from fastssl import losses, ops
from fastssl.compat import _labels
from fastssl.compat._dino import LARGE_CROPS, DINOOfCrops
from fastssl.compat._processes import everyone
from fastssl.losses import _group, _rows
from fastssl.ops import _check

__all__ = ["DINOLoss", "mae_loss_func", "mocov2plus_loss_func", "mocov3_loss_func", "simclr_loss_func"]


def simclr_loss_func(z: Tensor, indexes: Tensor, temperature: float = 0.1) -> Tensor:
    """SimCLR's loss of any number of views; of two, NT-Xent (arXiv:2002.05709, eq. 1).

    The mean over rows i of ``-log(sum_p exp(s_ip) / sum_{j != i} exp(s_ij))``, ``s`` the cosine similarity over the
    temperature, p over the other rows of i's index. A row whose index no other has does not count. Two rows an index
    need memory that grows with N D; more, with the similarities. Waits for the device once, to see which it is.

    Args:
        z: (N views, D) projections, normalised inside.
        indexes: (N views) integers, which image (or, supervised, which class) a row is of.
        temperature: finite, > 0.
    Returns:
        The scalar loss in nats, in float32 (float64 for float64 inputs).
    Raises:
        TypeError, ValueError: for other shapes, dtypes or temperatures, fewer than two rows, or processes whose
            numbers of rows differ.
    """
    owner = "simclr_loss_func"
    processes = _group.resolved(owner, everyone())

    def check() -> tuple[Tensor, Tensor]:
        _check.positive(owner, "temperature", temperature)
        _rows.not_empty(owner, _check.float_tensor(owner, "z", z, "ND"))
        return z, _labels.checked(owner, "indexes", indexes, z)

    z, classes = _group.agreed(owner, processes, check, temperature=temperature)
    rows = _rows.unit(z, False)
    (candidates, own), (classes, _) = (_group.with_places(x, processes) for x in (rows, classes))
    if len(candidates) < 2:
        raise ValueError(f"{owner}: needs at least two rows; got {_check.shape(z)}")
    pairs = _labels.pairs(classes)
    if pairs is None:
        return _of_any_views(rows, candidates, classes, own, temperature, processes)
    first, second = pairs
    if processes is None:
        return ops.nt_xent(rows[first], rows[second], temperature=temperature)
    other = torch.empty_like(classes, dtype=torch.int64).scatter(0, first, second).scatter(0, second, first)
    return ops.info_nce(rows, candidates, other[own], temperature=temperature, exclude=own)


def _of_any_views(
    rows: Tensor,
    candidates: Tensor,
    classes: Tensor,
    own: Tensor,
    temperature: float,
    processes: dist.ProcessGroup | None,
) -> Tensor:
    scaled, candidates = _rows.widened(rows) / temperature, _rows.widened(candidates)
    positive = classes[own][:, None] == classes
    positive.scatter_(1, own[:, None], False)
    with _rows.without_autocast(rows):
        products = scaled @ candidates.T
    of_positives = products.masked_fill(~positive, float("-inf")).logsumexp(1)
    counted = positive.any(1)
    lost = torch.where(counted, _rows.log_sum_exp(scaled, candidates, own) - of_positives, 0.0)
    total = _group.summed(counted.sum().to(lost.dtype), processes)
    return _group.size(processes) * lost.sum() / total.clamp_min(1)


def mocov2plus_loss_func(query: Tensor, key: Tensor, queue: Tensor, temperature: float = 0.1) -> Tensor:
    """MoCo's loss of rows that are normalised already (arXiv:1911.05722, eq. 1); the logits are not stored.

    Args:
        query, key: (N, D).
        queue: (D, K), without gradient.
        temperature: finite, > 0.
    Returns:
        The scalar loss in nats, in float32 (float64 for float64 inputs).
    Raises:
        TypeError, ValueError: for other shapes, dtypes or temperatures.
    """
    owner = "mocov2plus_loss_func"
    _check.float_tensor(owner, "query", query, "ND")
    _check.float_tensor(owner, "queue", queue, "DK")
    if query.shape[1] != queue.shape[0]:
        raise ValueError(
            f"{owner}: query (N, D) and queue (D, K) must agree on D; got {_check.shape(query)} and "
            f"{_check.shape(queue)}"
        )
    return ops.queue_info_nce(query, key, queue.T, temperature=temperature)


def mocov3_loss_func(query: Tensor, key: Tensor, temperature: float = 0.2) -> Tensor:
    """MoCo v3's loss (arXiv:2104.02057, algorithm 1): 2 temperatures times InfoNCE of rows normalised inside.

    Args:
        query, key: (N, D). The keys of all processes are candidates.
        temperature: finite, > 0.
    Returns:
        The scalar loss, in float32 (float64 for float64 inputs).
    Raises:
        TypeError, ValueError: for other shapes, dtypes or temperatures, or processes whose numbers of rows differ.
    """
    return losses.info_nce_loss(query, key, temperature=temperature, group=everyone()) * (2 * temperature)


class DINOLoss(DINOOfCrops):
    """DINO's loss, student first, with a center (1, num_prototypes) that follows the teacher's mean in training.

    ``epoch``, an attribute, is 0 at first; set it when an epoch begins.

    Args:
        num_prototypes: K.
        warmup_teacher_temp, teacher_temp, warmup_teacher_temp_epochs: the teacher's temperature goes from the first to
            the second over these epochs.
        num_epochs: epochs of the training.
        student_temp: finite, > 0.
        num_large_crops: crops of the student; the first two are the teacher's.
        center_momentum: in [0, 1].
    Raises:
        ValueError: for other temperatures or momenta, sizes below 1, or fewer epochs than the warmup has.
    """

    def __init__(
        self,
        num_prototypes: int,
        warmup_teacher_temp: float,
        teacher_temp: float,
        warmup_teacher_temp_epochs: int,
        num_epochs: int,
        student_temp: float = 0.1,
        num_large_crops: int = LARGE_CROPS,
        center_momentum: float = 0.9,
    ) -> None:
        temperatures = (warmup_teacher_temp, teacher_temp, warmup_teacher_temp_epochs, num_epochs)
        super().__init__(num_prototypes, num_large_crops, temperatures, student_temp, center_momentum)
        self.epoch, self.num_large_crops = 0, num_large_crops

    def forward(self, student_output: Tensor, teacher_output: Tensor) -> Tensor:
        """student_output: (num_large_crops N, K) logits, crop after crop; teacher_output: (2 N, K), without gradient.

        Returns the scalar mean loss in nats, in float32 (float64 for float64 students).

        Raises:
            TypeError, ValueError: for logits that are not so many crops of one batch, of other prototypes or another
                device than the center's, or an epoch outside the training; over several processes on each, naming the
                ranks, if one has such input or they differ in shapes or dtypes.
        """
        return self.of_epoch(student_output, teacher_output, self.epoch)


def mae_loss_func(imgs: Tensor, pred: Tensor, mask: Tensor, patch_size: int, norm_pix_loss: bool = True) -> Tensor:
    """Mean squared error of the removed patches' pixels (MAE, arXiv:2111.06377, section 3). See ``losses.mae_loss``.

    Args:
        imgs: (N, C, H, W).
        pred: (N, L, P P C), channels last.
        mask: (N, L), 1 for a removed patch.
        patch_size: P.
        norm_pix_loss: compare with each patch's pixels less their mean, over their standard deviation.
    Returns:
        The scalar mean over removed patches, 0 without any, in float32 (float64 for float64 images).
    Raises:
        TypeError, ValueError: for other shapes, dtypes or sizes.
    """
    return losses.mae_loss(imgs, pred, mask, patch_size=patch_size, normalize_pixels=norm_pix_loss)
