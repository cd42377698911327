"""Checks of what users pass, worded alike by all ops: the op, what it needs, what it got."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Integral, Real

import torch
from torch import Tensor

from fastssl.ops import _native

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def shape(tensor: Tensor) -> str:
    """``tensor``'s shape as the messages write it: ``(2, 3)``, and ``(2)`` for one dimension."""
    return f"({', '.join(map(str, tensor.shape))})"


def tensor(op: str, name: str, value: object) -> Tensor:
    """``value`` must be a tensor whose elements lie in memory as its strides say: not a sparse one."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{op}: {name} must be a tensor; got {_kind(value)}")
    if value.layout != torch.strided:
        raise TypeError(f"{op}: {name} must be dense; got {value.layout}")
    return value


def _kind(value: object) -> str:
    """The type of what is no tensor; of tensors in a list, as views and crops come, also how they become one."""
    found = type(value).__name__
    if isinstance(value, (list, tuple)) and value and all(isinstance(x, Tensor) for x in value):
        return f"{found} of {len(value)} (torch.stack or torch.cat makes them one)"
    return found


def number(op: str, name: str, value: object) -> float:
    """``value`` must be a real number, not a bool; infinite if it is beyond what a float holds."""
    if not isinstance(value, Real) or isinstance(value, bool):
        raise TypeError(f"{op}: {name} must be a number; got {type(value).__name__}")
    try:
        return float(value)
    except OverflowError:
        return math.inf


def whole(op: str, name: str, value: object) -> int:
    """``value`` must be an integer, not a bool, that 64 bits hold."""
    if not isinstance(value, Integral) or isinstance(value, bool):
        raise TypeError(f"{op}: {name} must be an integer; got {type(value).__name__}")
    found = int(value)
    if not -(2**63) <= found < 2**63:
        raise ValueError(f"{op}: {name} must be an integer of 64 bits; got {found}")
    return found


def one_or_two(op: str, name: str, value: object) -> tuple[int, int]:
    """Height and width: ``value`` must be one integer or two, each at least 1."""
    pair = value if isinstance(value, (tuple, list)) else (value, value)
    if len(pair) != 2:
        raise ValueError(f"{op}: {name} must be one integer or two; got {len(pair)}")
    first, second = (whole(op, name, number) for number in pair)
    if min(first, second) < 1:
        raise ValueError(f"{op}: {name} must be at least 1; got {value}")
    return first, second


def generator(op: str, value: object, device: torch.device | str | None) -> torch.Generator | None:
    """``value`` must be None or a generator on ``device``, if that is told."""
    if value is None:
        return None
    if not isinstance(value, torch.Generator):
        raise TypeError(f"{op}: generator must be a torch.Generator; got {type(value).__name__}")
    if device is not None and value.device.type != torch.device(device).type:
        raise ValueError(f"{op}: generator is on {value.device}, and device={device} was asked for")
    return value


def uniform_noise(
    op: str,
    noise: object,
    shape_: tuple[int, int],
    drawn_by: torch.Generator | None,
    device: torch.device | str | None,
) -> Tensor:
    """float32 ``noise`` of this shape, on ``device`` if that is told; drawn in [0, 1) where none is given."""
    drawn_by = generator(op, drawn_by, device)
    if noise is None:
        where = device if device is not None or drawn_by is None else drawn_by.device
        if drawn_by is None:  # torch.compile cannot trace generator=None for sizes that change
            return torch.rand(shape_, device=where)
        return torch.rand(shape_, generator=drawn_by, device=where)
    given = float_tensor(op, "noise", noise, "BN")
    if given.dtype != torch.float32:
        raise TypeError(f"{op}: noise must be float32; got {given.dtype}")
    if given.shape != shape_:
        raise ValueError(f"{op}: noise must have shape {shape_}; got {shape(given)}")
    if device is not None and given.device.type != torch.device(device).type:
        raise ValueError(f"{op}: noise is on {given.device}, and device={device} was asked for")
    return given


def float_tensor(op: str, name: str, value: object, dims: Sequence[str]) -> Tensor:
    """``value`` must be a floating-point tensor with as many dimensions as ``dims`` has names."""
    value = tensor(op, name, value)
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
    found = number(op, name, value)
    if not 0 < found < math.inf:  # and not math.isfinite, which torch.compile cannot trace for a number that changes
        raise ValueError(f"{op}: {name} must be finite and above 0; got {value}")
    return found


def one_device(op: str, first: tuple[str, Tensor], second: tuple[str, Tensor]) -> None:
    """Two tensors must share their device."""
    (name0, x0), (name1, x1) = first, second
    if x0.device != x1.device:
        raise ValueError(f"{op}: {name0} and {name1} must be on one device; got {x0.device} and {x1.device}")


def scale(op: str, name: str, value: object, rows: Tensor, *, above_zero: bool = False) -> float | Tensor:
    """``value`` must be a finite number (above 0), or a floating-point tensor without dimensions near ``rows``.

    What the tensor holds is not checked: that would wait for its device, and leave a compiled graph.
    """
    if isinstance(value, Tensor):
        given = float_tensor(op, name, value, "")
        if given.device.type not in ("cpu", rows.device.type):  # torch lets a number on the CPU scale any device's rows
            where = "on the CPU" if rows.device.type == "cpu" else f"on {rows.device} or on the CPU"
            raise ValueError(f"{op}: {name} must be {where}; got {given.device}")
        return given
    if above_zero:
        return positive(op, name, value)
    if not isinstance(value, Real):
        raise TypeError(f"{op}: {name} must be a number or a tensor; got {type(value).__name__}")
    found = number(op, name, value)
    if not -math.inf < found < math.inf:
        raise ValueError(f"{op}: {name} must be finite; got {value}")
    return found


def index_tensor(op: str, name: str, value: object, length: int, device: torch.device) -> Tensor:
    """``value`` must be an int64 tensor (length) on ``device``; ``in_range`` checks what it holds, where it is read."""
    value = tensor(op, name, value)
    if value.dtype != torch.int64:
        raise TypeError(f"{op}: {name} must be int64; got {value.dtype}")
    if value.shape != (length,):
        raise ValueError(f"{op}: {name} must have shape ({length}); got {shape(value)}")
    if value.device != device:
        raise ValueError(f"{op}: {name} must be on {device}; got {value.device}")
    return value


def in_range(op: str, name: str, values: Tensor, count: int) -> None:
    """Every value must be in [0, count). Waits for the device."""
    low, high = (int(x) for x in values.aminmax())
    if low < 0 or high >= count:
        raise ValueError(f"{op}: {name} must be in [0, {count}); got {low if low < 0 else high}")


def pairs(op: str, a: object, b: object) -> tuple[Tensor, Tensor]:
    """Features of N pairs, two (N, D) of one dtype and device, N and D not 0; as autocast casts them."""
    a, b = float_tensor(op, "a", a, "ND"), float_tensor(op, "b", b, "ND")
    if a.shape != b.shape:
        raise ValueError(f"{op}: a and b must have the same shape (N, D); got {shape(a)} and {shape(b)}")
    if a.numel() == 0:
        raise ValueError(f"{op}: needs at least one pair and one feature; got {shape(a)}")
    a, b = as_autocast_casts(a), as_autocast_casts(b)
    alike(op, ("a", a), ("b", b))
    return a, b


def crops(op: str, student: object, teacher: object) -> tuple[Tensor, Tensor]:
    """(S, B, K) and (T, B, K) that DINO's cross-entropy can pair, on one device."""
    student, teacher = float_tensor(op, "student", student, "SBK"), float_tensor(op, "teacher", teacher, "TBK")
    if student.shape[1:] != teacher.shape[1:]:
        raise ValueError(
            f"{op}: student (S, B, K) and teacher (T, B, K) must agree on B and K; "
            f"got {shape(student)} and {shape(teacher)}"
        )
    if student.numel() == 0 or teacher.numel() == 0:
        raise ValueError(
            f"{op}: needs at least one crop, sample and prototype; "
            f"got student {shape(student)} and teacher {shape(teacher)}"
        )
    if len(student) == len(teacher) == 1:
        raise ValueError(f"{op}: needs two different crops to compare; got one of the student and one of the teacher")
    if teacher.dtype == torch.float64 and student.dtype != torch.float64:
        raise TypeError(f"{op}: a float64 teacher needs a float64 student; got {student.dtype}")
    one_device(op, ("student", student), ("teacher", teacher))
    return student, teacher


def scaled(rows: Tensor, factor: float | Tensor) -> tuple[Tensor, float]:
    """Rows and the number by which their products are to be multiplied.

    A tensor is multiplied in at once: its gradient is then what the product's gradient passes on to it, and no kernel
    needs to know of it.
    """
    if not isinstance(factor, Tensor):
        return rows, factor
    return rows.to(_native.accumulator(rows.dtype)) * factor, 1.0


def momentum(op: str, value: object, name: str = "momentum") -> float:
    """``value`` must be a number in [0, 1]."""
    if not isinstance(value, Real):
        raise ValueError(f"{op}: {name} must be a number in [0, 1]; got {type(value).__name__}")
    if not 0.0 <= number(op, name, value) <= 1.0:
        raise ValueError(f"{op}: {name} must be a number in [0, 1]; got {value}")
    return float(value)
