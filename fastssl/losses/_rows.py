"""What the losses do with rows before their formula."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeAlias

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.functional import normalize, softplus

from fastssl import ops
from fastssl.losses import _group
from fastssl.losses._group import Group
from fastssl.ops import _check

STRATEGIES = ("gather", "ring")
Named: TypeAlias = tuple[str, Tensor]


class OfRows(_group.OverGroup):
    """A loss of rows against those of all processes: what its function is to be told of them at each call."""

    def __init__(self, *, normalized: bool = False, group: Group = None, strategy: str = "gather") -> None:
        super().__init__()
        self.normalized, self.group = normalized, group
        self.strategy = known_strategy(type(self).__name__, strategy)

    def settings(self) -> dict[str, Any]:
        """The keyword arguments that the losses' functions share."""
        return dict(normalized=self.normalized, group=self.group, strategy=self.strategy)

    def extra_repr(self) -> str:
        strategy = "" if self.group is None else f", strategy={self.strategy!r}"
        return f"normalized={self.normalized}{self.told_group()}{strategy}"


def unit(rows: Tensor, normalized: bool) -> Tensor:
    """Rows of unit length, computed in float32 at least: those that have it already are taken as they are."""
    if normalized:
        return rows
    rows = _check.as_autocast_casts(rows)
    return normalize(widened(rows), dim=-1).to(rows.dtype)  # float16 holds neither large norms nor the epsilon of none


def begun(
    owner: str,
    first: Named,
    second: Named,
    *,
    normalized: bool,
    group: Group,
    strategy: str,
    numbers: Callable[[Tensor], object],
    **settings: object,
) -> tuple[Tensor, Tensor, dist.ProcessGroup | None]:
    """What a loss of two (N, D) begins with: checked on all processes, rows of unit length, and the processes.

    ``settings`` are what else the loss was given; ``numbers``, told the first rows, checks them.
    """
    processes = _group.resolved(owner, group)

    def check() -> tuple[Tensor, Tensor]:
        known_strategy(owner, strategy)
        x0, x1 = pair(owner, first, second)
        numbers(x0)
        return x0, x1

    x0, x1 = _group.agreed(owner, processes, check, strategy=strategy, normalized=normalized, **settings)
    return unit(x0, normalized), unit(x1, normalized), processes


def pair(owner: str, first: Named, second: Named) -> tuple[Tensor, Tensor]:
    """Two (N, D) of one shape, dtype and device, as autocast casts them.

    Raises:
        TypeError, ValueError: naming the owner and what was received.
    """
    for name, rows in (first, second):
        _check.float_tensor(owner, name, rows, "ND")
    (name0, x0), (name1, x1) = first, second
    if x0.shape != x1.shape:
        raise ValueError(
            f"{owner}: {name0} and {name1} must have the same shape (N, D); got {_check.shape(x0)} and "
            f"{_check.shape(x1)}"
        )
    not_empty(owner, x0)
    x0, x1 = _check.as_autocast_casts(x0), _check.as_autocast_casts(x1)
    _check.alike(owner, (name0, x0), (name1, x1))
    return x0, x1


def not_empty(owner: str, rows: Tensor) -> Tensor:
    if rows.numel() == 0:
        raise ValueError(f"{owner}: needs at least one sample and one feature; got {_check.shape(rows)}")
    return rows


def known_strategy(owner: str, value: str) -> str:
    if value not in STRATEGIES:
        raise ValueError(f"{owner}: strategy must be one of {', '.join(STRATEGIES)}; got {value!r}")
    return value


def without_autocast(rows: Tensor) -> AbstractContextManager[object]:
    """Inside, products stay in the dtype of their factors."""
    if rows.device.type == "meta":  # where torch knows no autocast
        return nullcontext()
    return torch.autocast(rows.device.type, enabled=False)


def widened(rows: Tensor) -> Tensor:
    """Rows in what sums are kept in."""
    return rows if rows.dtype == torch.float64 else rows.float()


def log_sum_exp(queries: Tensor, keys: Tensor, exclude: Tensor | None = None) -> Tensor:
    """(N) log-sum-exps of each query's products with the keys, but for the column ``exclude`` (N); none is stored.

    InfoNCE against any target, without its margin to the target.
    """
    if exclude is None:
        target = torch.zeros(len(queries), dtype=torch.int64, device=queries.device)
    else:
        target = (exclude + 1) % len(keys)
    margin = ops.info_nce(queries, keys, target, temperature=1.0, exclude=exclude, reduction="none")
    return margin + (queries * keys[target]).sum(1)


def log_one_plus_exp(x: Tensor) -> Tensor:
    """log(1 + e^x), which is x to float64's last bit from 40 on."""
    return softplus(x, threshold=40)
