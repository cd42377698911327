"""Contrastive predictive coding: what was predicted of the steps to come, told from all else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from fastssl.losses import _group, _rows
from fastssl.losses._group import Group
from fastssl.losses.info_nce import contrasted
from fastssl.ops import _check

Steps: TypeAlias = "Tensor | Sequence[Tensor]"  # (steps, N, D), or the (N, D) of each step, N its own


def cpc_loss(
    predictions: Steps,
    targets: Steps,
    *,
    temperature: float,
    normalized: bool = False,
    group: Group = None,
    strategy: str = "gather",
) -> Tensor:
    """The mean of InfoNCE over the steps predicted (CPC, arXiv:1807.03748, eq. 4). See ``CPCLoss``.

    Args:
        predictions, targets: (steps, N, D), alike in order; or (N, D) of each step, where N is not the same for all.
    Returns:
        The scalar in nats, in float32 (float64 for float64 rows).
    Raises:
        TypeError: for rows that are no floating-point tensors, or of two dtypes that autocast does not make one.
        ValueError: for other shapes, no sample or feature, two devices, no step, a temperature that is not finite and
            positive, or another strategy; with a group on every process, naming the ranks, if one has such input or
            they differ in shapes or dtypes.
        RuntimeError: for a group before torch.distributed is initialised, or on a second derivative, which is not
            supported.
    """
    owner = "CPCLoss"
    processes = _group.resolved(owner, group)

    def check() -> tuple[Tensor, ...]:
        _rows.known_strategy(owner, strategy)
        _check.positive(owner, "temperature", temperature)
        if isinstance(predictions, Tensor) and isinstance(targets, Tensor):
            return _steps(owner, predictions, targets)
        return _uneven(owner, predictions, targets)

    found = _group.agreed(owner, processes, check, strategy=strategy, normalized=normalized, temperature=temperature)
    rows = [_rows.unit(x, normalized) for x in found]
    if rows[0].ndim == 3:
        rows = [*rows[0], *rows[1]]
    pairs = zip(rows[: len(rows) // 2], rows[len(rows) // 2 :], strict=True)
    losses = [contrasted(prediction, target, temperature, None, processes, strategy) for prediction, target in pairs]
    return torch.stack(losses).mean()


def _steps(owner: str, predictions: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Two (steps, N, D) of one shape, dtype and device, as autocast casts them."""
    for name, rows in (("predictions", predictions), ("targets", targets)):
        _check.float_tensor(owner, name, rows, ("steps", "N", "D"))
    if predictions.shape != targets.shape or predictions.numel() == 0:
        raise ValueError(
            f"{owner}: predictions and targets must have the same shape (steps, N, D), of one step, sample and "
            f"feature at least; got {_check.shape(predictions)} and {_check.shape(targets)}"
        )
    predictions, targets = _check.as_autocast_casts(predictions), _check.as_autocast_casts(targets)
    _check.alike(owner, ("predictions", predictions), ("targets", targets))
    return predictions, targets


def _uneven(owner: str, predictions: Steps, targets: Steps) -> tuple[Tensor, ...]:
    """The (N, D) of each step, first all predictions, then all targets."""
    if isinstance(predictions, Tensor) or isinstance(targets, Tensor) or len(predictions) != len(targets):
        had = " and ".join("a tensor" if isinstance(x, Tensor) else f"{len(x)} steps" for x in (predictions, targets))
        raise ValueError(f"{owner}: predictions and targets must both be tensors, or of as many steps; got {had}")
    if not predictions:
        raise ValueError(f"{owner}: needs at least one step; got none")
    found = [
        _rows.pair(owner, ("predictions", prediction), ("targets", target))
        for prediction, target in zip(predictions, targets, strict=True)
    ]
    return (*(prediction for prediction, _ in found), *(target for _, target in found))


class CPCLoss(_rows.OfRows):
    """The mean of InfoNCE over the steps predicted (CPC, arXiv:1807.03748, eq. 4).

    Of each step k, prediction i (the paper's ``W_k c_t``) is to find its target (``z_{t+k}``) among the targets of all
    N: other places and other samples. The paper's scores are plain products: ``CPCLoss(1.0, normalized=True)``, which
    takes rows as they are.

    Args:
        temperature: divides the cosine similarities; finite, > 0.
        normalized, group, strategy: as of ``InfoNCE``.
    Raises:
        ValueError: if the temperature is not finite and positive, or for another strategy.
    """

    def __init__(
        self, temperature: float, *, normalized: bool = False, group: Group = None, strategy: str = "gather"
    ) -> None:
        super().__init__(normalized=normalized, group=group, strategy=strategy)
        self.temperature = _check.positive("CPCLoss", "temperature", temperature)

    def forward(self, predictions: Steps, targets: Steps) -> Tensor:
        """predictions, targets: (steps, N, D), alike in order, or of each step (N, D). Returns the mean loss in nats.

        Raises what ``cpc_loss`` does.
        """
        return cpc_loss(predictions, targets, temperature=self.temperature, **self.settings())

    def extra_repr(self) -> str:
        return f"temperature={self.temperature}, {super().extra_repr()}"
