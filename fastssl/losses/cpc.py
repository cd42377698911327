"""Contrastive predictive coding: what was predicted of the steps to come, told from all else."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastssl.losses import _group, _rows
from fastssl.losses._group import Group
from fastssl.losses.info_nce import contrasted
from fastssl.ops import _check


class CPCLoss(nn.Module):
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
        super().__init__()
        self.temperature = _check.positive("CPCLoss", "temperature", temperature)
        self.normalized, self.group, self.strategy = normalized, group, _rows.known_strategy("CPCLoss", strategy)

    def forward(self, predictions: Tensor, targets: Tensor) -> Tensor:
        """predictions, targets: (steps, N, D), alike in order. Returns the scalar mean loss in nats.

        Raises:
            TypeError: for rows that are no floating-point tensors, or of two dtypes that autocast does not make one.
            ValueError: for other shapes, no sample or feature, two devices, or no step; with a group on every process,
                naming the ranks, if one has such input or they differ in shapes or dtypes.
            RuntimeError: for a group before torch.distributed is initialised, or on a second derivative, which is not
                supported.
        """
        processes = _group.resolved("CPCLoss", self.group)
        predictions, targets = _group.agreed(
            "CPCLoss", processes, lambda: self._checked(predictions, targets), strategy=self.strategy
        )
        predictions, targets = _rows.unit(predictions, self.normalized), _rows.unit(targets, self.normalized)
        losses = [
            contrasted(prediction, target, self.temperature, None, processes, self.strategy)
            for prediction, target in zip(predictions, targets, strict=True)
        ]
        return torch.stack(losses).mean()

    def _checked(self, predictions: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        owner = "CPCLoss"
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

    def extra_repr(self) -> str:
        return f"temperature={self.temperature}, normalized={self.normalized}"
