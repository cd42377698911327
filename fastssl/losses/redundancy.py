"""Losses that keep features apart without negatives: Barlow Twins' and VICReg's."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import mse_loss

from fastssl.losses import _group, _rows
from fastssl.losses._group import Group
from fastssl.ops import _check


class _Batch:
    """A batch that may be spread over processes: its size, and means over all of it."""

    def __init__(self, owner: str, z0: Tensor, z1: Tensor, group: Group, **weights: float) -> None:
        self.processes = _group.resolved(owner, group)

        def check() -> tuple[Tensor, Tensor]:
            for name, weight in weights.items():
                _weight(owner, name, weight)
            return _rows.pair(owner, ("z0", z0), ("z1", z1))

        self.views = _group.agreed(owner, self.processes, check, **weights)
        self.count = len(z0) * _group.size(self.processes)
        if self.count < 2:
            raise ValueError(f"{owner}: needs at least two samples, for their variance; got {self.count}")

    def centered(self, z: Tensor) -> Tensor:
        """Rows less the mean of all."""
        z = _rows.widened(z)
        return z - _group.summed(z.sum(0), self.processes) / self.count

    def products(self, x: Tensor, y: Tensor) -> Tensor:
        """x^T y over all rows: (D, D)."""
        with _rows.without_autocast(x):
            return _group.summed(x.T @ y, self.processes)


def _off_diagonal_squares(x: Tensor) -> Tensor:
    return x.square().sum() - x.diagonal().square().sum()


def _weight(owner: str, name: str, value: object) -> float:
    """``value`` must be a finite number, at least 0."""
    found = _check.number(owner, name, value)
    if not 0 <= found < math.inf:
        raise ValueError(f"{owner}: {name} must be finite and at least 0; got {value}")
    return found


def barlow_twins_loss(z0: Tensor, z1: Tensor, *, redundancy_weight: float = 0.005, group: Group = None) -> Tensor:
    """The cross-correlation's distance from the identity (arXiv:2103.03230, eq. 1). See ``BarlowTwins``.

    Args:
        z0, z1: (N, D) features of two views of the same N samples, N at least 2 (over all processes).
    Returns:
        The scalar, in float32 (float64 for float64 rows).
    Raises:
        TypeError: for rows that are no floating-point tensors, or of two dtypes that autocast does not make one.
        ValueError: for other shapes, no sample or feature, two devices, or fewer than two samples; with a group on
            every process, naming the ranks, if one has such input or they differ in shapes or dtypes.
        RuntimeError: for a group before torch.distributed is initialised.
    """
    batch = _Batch("BarlowTwins", z0, z1, group, redundancy_weight=redundancy_weight)
    x0, x1 = (batch.centered(z) for z in batch.views)
    scale0, scale1 = ((_group.summed(x.square().sum(0), batch.processes) / batch.count + 1e-5).sqrt() for x in (x0, x1))
    correlation = batch.products(x0 / scale0, x1 / scale1) / batch.count
    own = (1 - correlation.diagonal()).square().sum()
    return own + redundancy_weight * _off_diagonal_squares(correlation)


class BarlowTwins(_group.OverGroup):
    """The cross-correlation of two views' features, pulled to the identity (arXiv:2103.03230, eq. 1).

    ``sum_i (1 - C_ii)^2 + lambda sum_{i != j} C_ij^2``, with C the correlations over the batch of features standardised
    as batch normalisation does.

    Args:
        redundancy_weight: the paper's lambda, which it sets to 0.005.
        group: None, or "world" or a process group, over all of whose rows correlations are taken. Each of its processes
            then computes the loss of the whole batch.
    Raises:
        TypeError, ValueError: for a weight that is no finite number, or below 0.
    """

    def __init__(self, redundancy_weight: float = 0.005, *, group: Group = None) -> None:
        super().__init__()
        self.redundancy_weight = _weight("BarlowTwins", "redundancy_weight", redundancy_weight)
        self.group = group

    def forward(self, z0: Tensor, z1: Tensor) -> Tensor:
        """z0, z1: (N, D). Returns the scalar. Raises what ``barlow_twins_loss`` does."""
        return barlow_twins_loss(z0, z1, redundancy_weight=self.redundancy_weight, group=self.group)

    def extra_repr(self) -> str:
        return f"redundancy_weight={self.redundancy_weight}{self.told_group()}"


def vicreg_loss(
    z0: Tensor,
    z1: Tensor,
    *,
    invariance: float = 25.0,
    variance: float = 25.0,
    covariance: float = 1.0,
    group: Group = None,
) -> Tensor:
    """Invariance, variance and covariance of two views' features (arXiv:2105.04906, eq. 6). See ``VICReg``.

    Args:
        z0, z1: (N, D) features of two views of the same N samples, N at least 2 (over all processes).
    Returns:
        The scalar, in float32 (float64 for float64 rows).
    Raises:
        TypeError: for rows that are no floating-point tensors, or of two dtypes that autocast does not make one.
        ValueError: for other shapes, no sample or feature, two devices, or fewer than two samples; with a group on
            every process, naming the ranks, if one has such input or they differ in shapes or dtypes.
        RuntimeError: for a group before torch.distributed is initialised.
    """
    batch = _Batch("VICReg", z0, z1, group, invariance=invariance, variance=variance, covariance=covariance)
    wide0, wide1 = (_rows.widened(z) for z in batch.views)
    loss = invariance * mse_loss(wide0, wide1)
    for z in batch.views:
        x = batch.centered(z)
        c = batch.products(x, x) / (batch.count - 1)
        deviation = (c.diagonal() + 1e-4).sqrt()
        loss = loss + variance * torch.relu(1 - deviation).mean() / 2
        loss = loss + covariance * _off_diagonal_squares(c) / len(c)
    return loss


class VICReg(_group.OverGroup):
    """Invariance, variance and covariance of two views' features (arXiv:2105.04906, eq. 6).

    Rows are taken as they are: it is their length and spread that the variance is of. As in the paper's code, its term
    is the mean of both views', which eq. 6 adds.

    Args:
        invariance, variance, covariance: the weights; the paper's are 25, 25 and 1.
        group: None, or "world" or a process group, over all of whose rows variance and covariance are taken. The mean
            of the losses over the processes is the loss of the whole batch.
    Raises:
        TypeError, ValueError: for a weight that is no finite number, or below 0.
    """

    def __init__(
        self, invariance: float = 25.0, variance: float = 25.0, covariance: float = 1.0, *, group: Group = None
    ) -> None:
        super().__init__()
        weights = dict(invariance=invariance, variance=variance, covariance=covariance)
        self.weights = {name: _weight("VICReg", name, value) for name, value in weights.items()}
        self.group = group

    def forward(self, z0: Tensor, z1: Tensor) -> Tensor:
        """z0, z1: (N, D). Returns the scalar. Raises what ``vicreg_loss`` does."""
        return vicreg_loss(z0, z1, group=self.group, **self.weights)

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={weight}" for name, weight in self.weights.items()) + self.told_group()
