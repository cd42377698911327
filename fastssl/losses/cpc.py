"""Contrastive predictive coding: what was predicted of the steps to come, told from all else."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastssl.losses import _rows
from fastssl.losses._group import Group
from fastssl.losses.info_nce import info_nce_loss
from fastssl.ops import _check


class CPCLoss(nn.Module):
    """The mean of InfoNCE over the steps predicted (CPC, arXiv:1807.03748, eq. 4).

    Of each step k, prediction i (the paper's ``W_k c_t``) is to find its target (``z_{t+k}``) among the targets of all
    N: other places and other samples. The paper's scores are plain products: ``CPCLoss(1.0, normalized=True)``, which
    takes rows as they are.

    Args:
        temperature, normalized, group, strategy: as of ``InfoNCE``.
    """

    def __init__(
        self, temperature: float, *, normalized: bool = False, group: Group = None, strategy: str = "gather"
    ) -> None:
        super().__init__()
        self.temperature = _check.positive("CPCLoss", "temperature", temperature)
        self.normalized, self.group, self.strategy = normalized, group, _rows.strategy("CPCLoss", strategy)

    def forward(self, predictions: Tensor, targets: Tensor) -> Tensor:
        """predictions, targets: (steps, N, D), alike in order. Returns the scalar mean loss in nats."""
        for name, rows in (("predictions", predictions), ("targets", targets)):
            _check.float_tensor("CPCLoss", name, rows, "KND")
        if predictions.shape != targets.shape or len(predictions) == 0:
            raise ValueError(
                "CPCLoss: predictions and targets must have the same shape (steps, N, D), of one step at least; "
                f"got {_check.shape(predictions)} and {_check.shape(targets)}"
            )
        losses = [
            info_nce_loss(
                prediction,
                target,
                temperature=self.temperature,
                normalized=self.normalized,
                group=self.group,
                strategy=self.strategy,
            )
            for prediction, target in zip(predictions, targets, strict=True)
        ]
        return torch.stack(losses).mean()

    def extra_repr(self) -> str:
        return f"temperature={self.temperature}, normalized={self.normalized}"
