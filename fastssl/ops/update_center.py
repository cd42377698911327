"""The center of DINO's teacher: a moving average of the mean of its logits, in place."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fastssl.ops import _check, _inplace, _native
from fastssl.ops._backend import Implementation, Op, anything, native_cpu, native_cuda
from fastssl.ops._crossover import crossover

_OP = "update_center_"


def update_center_(center: Tensor, teacher: Tensor, momentum: float, *, backend: str | None = None) -> None:
    """``center = momentum * center + (1 - momentum) * mean(teacher)``, in place (DINO, arXiv:2104.14294, eq. 4).

    The mean is over all but the last dimension, in float32 (float64 for float64 inputs). Deterministic, and by our
    kernels the same bits for any number of threads; on a CPU, where plain torch measured faster, it serves the call.
    With several processes the center must see the rows of all: average the centers, all updated from the same one. No
    gradient is recorded. A ``distillation_loss`` that was given this center keeps a copy: its backward may come before
    or after.

    Args:
        center: (K) float32 or float64, updated in place: a narrower one would not move at momentum 0.99.
        teacher: (T, B, K) or (N, K) logits; float32, bfloat16, float16, or float64 only with a float64 center.
        momentum: in [0, 1]; 1 changes nothing, and 0 sets the center to the mean, whatever the others hold.
        backend: the backend that must serve the call; by default our kernel if it can, or plain torch
            where that measured faster (see ``fastssl.ops.explain``).
    Raises:
        TypeError: for dtypes other than those above.
        ValueError: for other shapes, a teacher without rows or prototypes, two devices, a momentum outside [0, 1], a
            center whose elements share memory (an expanded one), or a teacher in the memory of the center.
        RuntimeError: if ``backend`` cannot serve the call.
    """
    _check.float_tensor(_OP, "center", center, "K")
    if center.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"{_OP}: center must be float32 or float64; got {center.dtype}")
    _check.float_tensor(_OP, "teacher", teacher, "TBK" if isinstance(teacher, Tensor) and teacher.dim() == 3 else "NK")
    if teacher.numel() == 0 or teacher.shape[-1] != len(center):
        raise ValueError(
            f"{_OP}: teacher (T, B, K) or (N, K) needs rows of the {len(center)} prototypes of center; "
            f"got {_check.shape(teacher)}"
        )
    if teacher.dtype == torch.float64 and center.dtype != torch.float64:
        raise TypeError(f"{_OP}: a float64 teacher needs a float64 center; got {center.dtype}")
    momentum = _check.momentum(_OP, momentum)
    _check.one_device(_OP, ("center", center), ("teacher", teacher))
    _inplace.refuse_overlap(_OP, "center", center)
    with torch.no_grad():
        _update_center.call(center, teacher, momentum, backend)


def reference(center: Tensor, teacher: Tensor, momentum: float) -> None:
    """The formula in plain torch; a momentum of 1 or 0 takes one of both alone, for 0 times infinity is no number."""
    if momentum == 1.0:
        return
    mean = teacher.to(center.dtype).flatten(0, -2).mean(0)
    center.copy_(mean if momentum == 0.0 else momentum * center + (1.0 - momentum) * mean)


def _reference(center: Tensor, teacher: Tensor, momentum: float) -> None:
    _inplace.refuse_shared(_OP, ("center", center), ("teacher", teacher))
    reference(center, teacher, momentum)


def _run(kernel: Callable[..., None], center: Tensor, teacher: Tensor, momentum: float, *last: int) -> None:
    """A native kernel, whose last arguments are the number of threads, or scratch memory and the stream."""
    _inplace.refuse_shared(_OP, ("center", center), ("teacher", teacher))
    teacher = teacher.contiguous()
    kernel(
        center.data_ptr(),
        _native.DTYPES[center.dtype],
        teacher.data_ptr(),
        teacher.numel() // len(center),
        len(center),
        _native.DTYPES[teacher.dtype],
        momentum,
        *last,
    )


def _cpu(center: Tensor, teacher: Tensor, momentum: float) -> None:
    _run(_native.cpu.update_center, center, teacher, momentum, _native.threads())


def _cuda(center: Tensor, teacher: Tensor, momentum: float) -> None:
    rows = teacher.numel() // len(center)
    size = _native.cuda.update_center_scratch(_native.DTYPES[center.dtype], rows, len(center))
    scratch = _native.scratch(center, size)
    with torch.cuda.device(center.device):
        last = (scratch.data_ptr(), _native.stream(center))
        _run(_native.cuda.update_center, center, teacher, momentum, *last)


def _with_gaps(center: Tensor) -> str | None:
    return None if center.is_contiguous() else f"it takes a center without gaps, got strides {tuple(center.stride())}"


def _sizes(teacher: Tensor) -> dict[str, int]:
    """What the choice of the reference looks at."""
    prototypes = teacher.shape[-1]
    return {"rows": teacher.numel() // prototypes, "prototypes": prototypes}


_update_center = Op(
    f"{_OP}(Tensor(a!) center, Tensor teacher, float momentum, str? backend) -> ()",
    {
        "cuda": Implementation(
            _cuda,
            lambda center, teacher, _: _with_gaps(center) or native_cuda(center, teacher),
            crossover("update_center", lambda center, teacher, _: _sizes(teacher), "cuda"),
        ),
        "cpu": Implementation(
            _cpu,
            lambda center, teacher, _: _with_gaps(center) or native_cpu(center, teacher),
            crossover("update_center", lambda center, teacher, _: _sizes(teacher)),
        ),
        "reference": Implementation(_reference, anything),
    },
    lambda *_: None,
    lambda device: (torch.zeros(8, device=device), torch.randn(2, 4, 8, device=device), 0.9),
)
