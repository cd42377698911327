"""Optimisers: SGD, AdamW and LARS, with one rule for weight decay.

The rule: only parameters of two or more dimensions decay. Biases and the scales and shifts of normalisation layers have
one; to pull those towards zero shrinks a layer's output without making it any simpler.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, overload

import torch
from torch import Tensor, nn

from fastssl.errors import UserError, unknown
from fastssl.schedule import Schedule, cosine_with_warmup


@dataclass(frozen=True)
class OptimConfig:
    """An optimiser and its schedule.

    Attributes:
        name: "sgd" (momentum, not Nesterov's), "adamw" (arXiv:1711.05101) or "lars" (for batches above 1,000).
        lr: highest learning rate, reached at the end of the warm-up; not scaled by the batch size.
        weight_decay: L2 factor of parameters with two or more dimensions; the others never decay.
        momentum: share of the last update that is kept; the first beta of AdamW.
        beta2: AdamW's second beta: share of the mean squared gradient that is kept.
        warmup_epochs: epochs of linear warm-up.
        final_lr: learning rate at the end of the cosine.
        final_weight_decay: weight_decay at the end of a cosine over the whole run; null keeps it as it is.
    """

    name: Literal["sgd", "adamw", "lars"] = "sgd"
    lr: float = 0.1
    weight_decay: float = 5e-4
    momentum: float = 0.9
    beta2: float = 0.999
    warmup_epochs: int = 5
    final_lr: float = 0.0
    final_weight_decay: float | None = None

    def __post_init__(self) -> None:
        if self.name not in list(_BUILDERS):  # a list: what YAML gives may have no hash
            raise unknown("optimiser", self.name, _BUILDERS)
        if not (math.isfinite(self.lr) and self.lr > 0):
            raise UserError(f"lr must be a finite number above 0; got {self.lr}")
        for name in ("weight_decay", "final_weight_decay"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value >= 0):
                raise UserError(f"{name} must be a finite number, 0 or above; got {value}")
        for name in ("momentum", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"{name} must lie in [0, 1); got {getattr(self, name)}")
        if self.warmup_epochs < 0:
            raise UserError(f"warmup_epochs must be 0 or above; got {self.warmup_epochs}")
        if not 0 <= self.final_lr <= self.lr:
            raise UserError(f"final_lr must lie between 0 and lr={self.lr}; got {self.final_lr}")


def set_rates(optimizer: torch.optim.Optimizer, lr: float, weight_decay: float) -> None:
    """The learning rate of all parameters, each by its own factor, and the decay of those that do."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["scale"]
        if any(map(decays, group["params"])):
            group["weight_decay"] = weight_decay


def decays(parameter: Tensor) -> bool:
    """Whether weight decay (and LARS's rate) applies to ``parameter``: not to biases and normalisation parameters."""
    return parameter.ndim > 1


class LARS(torch.optim.Optimizer):
    """Layer-wise adaptive rate scaling (arXiv:1708.03888, algorithm 1).

    For each parameter w with gradient g and velocity v::

        rate = trust * |w| / (|g| + weight_decay * |w|)
        v    = momentum * v + lr * rate * (g + weight_decay * w)
        w    = w - v

    Parameters of fewer than two dimensions take rate = 1 and no decay, and so does (rate = 1) one whose weight or
    gradient is all zero, which could not move otherwise.

    Args:
        params: parameters, or groups of them, as torch's optimisers take.
        lr: global learning rate, >= 0.
        momentum: in [0, 1).
        weight_decay: >= 0.
        trust: share of its own norm by which a layer moves at lr = 1, > 0.
    Raises:
        ValueError: naming the value, if one lies outside its bounds.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float,
        *,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust: float = 1e-3,
    ) -> None:
        if not lr >= 0 or not 0 <= momentum < 1 or not weight_decay >= 0 or not trust > 0:
            raise ValueError(
                f"LARS needs lr >= 0, 0 <= momentum < 1, weight_decay >= 0, trust > 0; "
                f"got lr={lr}, momentum={momentum}, weight_decay={weight_decay}, trust={trust}"
            )
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "trust": trust})

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """One update of every parameter that has a gradient. Returns the closure's loss, if one is given."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for w in group["params"]:
                if w.grad is not None:
                    self._update(w, group)
        return loss

    def _update(self, w: Tensor, group: dict[str, Any]) -> None:
        g = w.grad
        assert g is not None
        rate: Tensor | float = 1.0
        if decays(w):
            w_norm, g_norm = torch.linalg.vector_norm(w), torch.linalg.vector_norm(g)
            trusted = group["trust"] * w_norm / (g_norm + group["weight_decay"] * w_norm)
            rate = torch.where((w_norm > 0) & (g_norm > 0), trusted, 1.0)
            g = g.add(w, alpha=group["weight_decay"])
        state = self.state[w]
        if not state:
            state["velocity"] = torch.zeros_like(w)
        velocity = state["velocity"]
        velocity.mul_(group["momentum"]).add_(g * (group["lr"] * rate))
        w.sub_(velocity)


def _sgd(groups: list[dict[str, Any]], config: OptimConfig) -> torch.optim.Optimizer:
    return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum)


def _adamw(groups: list[dict[str, Any]], config: OptimConfig) -> torch.optim.Optimizer:
    return torch.optim.AdamW(groups, lr=config.lr, betas=(config.momentum, config.beta2))


def _lars(groups: list[dict[str, Any]], config: OptimConfig) -> torch.optim.Optimizer:
    return LARS(groups, lr=config.lr, momentum=config.momentum)


_BUILDERS = {"sgd": _sgd, "adamw": _adamw, "lars": _lars}


def build_optimizer(
    module: nn.Module, config: OptimConfig, *, scales: Mapping[str, float] | None = None
) -> torch.optim.Optimizer:
    """The optimiser of ``config`` over the trainable parameters of ``module``, in groups: decaying ones and others.

    Args:
        scales: factors of the learning rate by the name of a parameter, 1 for those that it does not name. Each group
            has its factor under ``scale``, and begins with its rate at ``config.lr``.
    Raises:
        ValueError: if ``module`` has no trainable parameter.
    """
    scales = scales or {}
    trainable = [(scales.get(name, 1.0), p) for name, p in module.named_parameters() if p.requires_grad]
    if not trainable:
        raise ValueError(f"{type(module).__name__} has no parameter to train")
    groups: list[dict[str, Any]] = [
        {
            "params": [p for own, p in trainable if own == scale and decays(p) == decaying],
            "weight_decay": config.weight_decay if decaying else 0.0,
            "scale": scale,
            "lr": config.lr * scale,
        }
        for scale in sorted({scale for scale, _ in trainable})
        for decaying in (True, False)
    ]
    return _BUILDERS[config.name](groups, config)


def learning_rate(config: OptimConfig, step: int, *, total: int, per_epoch: int) -> float:
    """Of step ``step``, from 0, of ``total``, ``per_epoch`` of them an epoch. A run shorter than its warm-up is all
    warm-up."""
    warmup = min(config.warmup_epochs * per_epoch, total)
    return cosine_with_warmup(step, total=total, warmup=warmup, base=config.lr, final=config.final_lr)


def weight_decay(config: OptimConfig, step: int, *, total: int, per_epoch: int) -> float:
    """Likewise."""
    return Schedule(config.weight_decay, config.final_weight_decay).at(step, total=total, per_epoch=per_epoch)
