"""Which rows go together, told by labels."""

from __future__ import annotations

import torch
from torch import Tensor

from fastssl.ops import _check

INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


def checked(owner: str, name: str, labels: Tensor, rows: Tensor) -> Tensor:
    """(N) integers, one for each row, on the device of the rows.

    Raises:
        TypeError, ValueError: naming what was received.
    """
    if _check.tensor(owner, name, labels).dtype not in INTEGERS:
        raise TypeError(f"{owner}: {name} must be integers; got {labels.dtype}")
    if labels.shape != rows.shape[:1]:
        raise ValueError(f"{owner}: {name} must be ({len(rows)}), one for each row; got {_check.shape(labels)}")
    return labels.to(rows.device)


def pairs(labels: Tensor) -> tuple[Tensor, Tensor] | None:
    """The first and the second row of each label, if all labels have two; None otherwise. Waits for the device."""
    if len(labels) % 2:
        return None
    found, order = labels.sort(stable=True)
    first, second = found[0::2], found[1::2]
    of_two = (first == second).all() & (second[:-1] != first[1:]).all()
    return (order[0::2], order[1::2]) if bool(of_two) else None
