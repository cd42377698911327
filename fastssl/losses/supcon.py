"""Supervised contrastive loss: all samples of one's class are positives."""

from __future__ import annotations

import torch
from torch import Tensor

from fastssl import ops
from fastssl.losses import _group, _rows
from fastssl.losses._group import Group
from fastssl.ops import _check


def supcon_loss(
    features: Tensor, labels: Tensor, *, temperature: float, normalized: bool = False, group: Group = None
) -> Tensor:
    """Supervised contrastive loss (arXiv:2004.11362, eq. 2). See ``SupCon``.

    Args:
        features: (N, D), several views of a sample as several rows.
        labels: (N) int64.
    Returns:
        The scalar in nats, in float32 (float64 for float64 features).
    Raises:
        TypeError: for features that are no floating-point tensor, or labels that are not int64.
        ValueError: for other shapes, fewer than two rows or no feature, two devices, or a temperature that is not
            finite and positive; with a group on every process, naming the ranks, if one has such input or they differ
            in shapes or dtypes.
        RuntimeError: for a group before torch.distributed is initialised, or on a second derivative, which is not
            supported.
    """
    owner = "SupCon"
    processes = _group.resolved(owner, group)

    def check() -> tuple[Tensor, Tensor]:
        _rows.not_empty(owner, _check.float_tensor(owner, "features", features, "ND"))
        _check.positive(owner, "temperature", temperature)
        return features, _check.index_tensor(owner, "labels", labels, len(features), features.device)

    features, labels = _group.agreed(owner, processes, check, normalized=normalized, temperature=temperature)
    rows = _rows.unit(_rows.widened(features), normalized)
    (candidates, own), (classes, _) = (_group.with_places(x, processes) for x in (rows, labels))
    if len(candidates) < 2:
        raise ValueError(f"{owner}: needs at least two rows; got {len(candidates)}")
    sums, counts = _of_same_class(candidates, classes)
    others, positives = sums[own] - rows, counts[own] - 1
    mean = others / positives.clamp_min(1)[:, None]
    any_other = (own + 1) % len(candidates)
    # the log-sum-exp less the product with any other row, then that product less the mean of the positives'
    margin = ops.info_nce(rows, candidates, any_other, temperature=temperature, exclude=own, reduction="none")
    losses = margin + (rows * (candidates[any_other] - mean)).sum(1) / temperature
    counted = (positives > 0).to(losses.dtype)
    total = _group.summed(counted.sum(), processes)
    return _group.size(processes) * (losses * counted).sum() / total.clamp_min(1)


class SupCon(_group.OverGroup):
    """Supervised contrastive loss (arXiv:2004.11362, eq. 2): the mean over rows of the mean over their positives.

    Row i's loss is ``lse_{a != i}(s_ia) - mean_p(s_ip)``, ``s_ia = <z_i, z_a> / temperature``, p over the other rows of
    its label; a row whose label no other has does not count, and without any pair the loss is 0. Memory grows with N D,
    not with N^2: the mean of the products with the positives is the product with their mean.

    Args:
        temperature: divides the cosine similarities; finite, > 0. The paper uses 0.1.
        normalized: True if rows already have unit length; they are normalised inside otherwise.
        group: None, or "world" or a process group: the rows of all its processes are candidates and positives, and the
            mean of the losses over the processes is the loss of the whole batch.
    Raises:
        ValueError: if the temperature is not finite and positive.
    """

    def __init__(self, temperature: float, *, normalized: bool = False, group: Group = None) -> None:
        super().__init__()
        self.temperature = _check.positive("SupCon", "temperature", temperature)
        self.normalized, self.group = normalized, group

    def forward(self, features: Tensor, labels: Tensor) -> Tensor:
        """features: (N, D); labels: (N) int64. Returns the scalar loss in nats. Raises what ``supcon_loss`` does."""
        return supcon_loss(features, labels, temperature=self.temperature, normalized=self.normalized, group=self.group)

    def extra_repr(self) -> str:
        return f"temperature={self.temperature}, normalized={self.normalized}{self.told_group()}"


def _of_same_class(rows: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """For each row the sum of all rows of its label, (N, D), and their number, (N). Does not wait for the device."""
    order = labels.argsort(stable=True)
    new = labels[order].diff(prepend=labels[order][:1]).ne(0)
    index = torch.empty_like(order).scatter_(0, order, new.cumsum(0))
    sums = torch.zeros_like(rows).index_add(0, index, rows)
    counts = torch.zeros_like(index).index_add(0, index, torch.ones_like(index))
    return sums[index], counts[index]
