"""Checks of what users pass, worded alike by all ops: the op, what it needs, what it got."""

from __future__ import annotations

import math
from numbers import Real

import torch
from torch import Tensor

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def shape(tensor: Tensor) -> str:
    """``tensor``'s shape as the messages write it: ``(2, 3)``, and ``(2)`` for one dimension."""
    return f"({', '.join(map(str, tensor.shape))})"


def float_tensor(op: str, name: str, value: object, dims: str) -> Tensor:
    """``value`` must be a floating-point tensor with as many dimensions as ``dims`` has letters."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{op}: {name} must be a tensor; got {type(value).__name__}")
    if value.dtype not in FLOATS:
        raise TypeError(f"{op}: {name} must be float32, bfloat16, float16 or float64; got {value.dtype}")
    if value.dim() != len(dims):
        raise ValueError(f"{op}: {name} must have shape ({', '.join(dims)}); got {shape(value)}")
    return value


def alike(op: str, first: tuple[str, Tensor], second: tuple[str, Tensor]) -> None:
    """Two tensors must share dtype and device."""
    (name0, x0), (name1, x1) = first, second
    if x0.dtype != x1.dtype:
        raise TypeError(f"{op}: {name0} and {name1} must have one dtype; got {x0.dtype} and {x1.dtype}")
    one_device(op, first, second)


def as_autocast_casts(x: Tensor) -> Tensor:
    """``x`` in float32 where autocast is on for its device, but for float64, which autocast leaves: as torch's losses.

    Done here and not by ``torch.library.register_autocast``, which torch 2.6 lacks and which runs after the checks.
    """
    on = x.device.type != "meta" and torch.is_autocast_enabled(x.device.type)
    return x.float() if on and x.dtype != torch.float64 else x


def positive(op: str, name: str, value: object) -> float:
    """``value`` must be a finite number above 0."""
    if not isinstance(value, Real) or isinstance(value, bool):
        raise TypeError(f"{op}: {name} must be a number; got {type(value).__name__}")
    number = float(value)
    if not (math.isfinite(number) and number > 0):
        raise ValueError(f"{op}: {name} must be finite and above 0; got {value}")
    return number


def one_device(op: str, first: tuple[str, Tensor], second: tuple[str, Tensor]) -> None:
    """Two tensors must share their device."""
    (name0, x0), (name1, x1) = first, second
    if x0.device != x1.device:
        raise ValueError(f"{op}: {name0} and {name1} must be on one device; got {x0.device} and {x1.device}")
