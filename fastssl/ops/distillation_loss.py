"""DINO's cross-entropy between the crops of teacher and student; no softmax over the prototypes is ever stored.

The sum over students of <p_t, log q_s> is <p_t, sum over students of log q_s>, so each row is read once, not once for
each pair. The backward needs of the forward each row's log-sum-exp alone, kept as the row's maximum and the log of what
is left, for their sum would be rounded; and the center as it was, for DINO moves it before the backward comes. The
forward returns that copy: a copy made outside of it, a compiler may take for the center itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import log_softmax, softmax

from fastssl.ops import _check, _native
from fastssl.ops._backend import Implementation, Op, anything, native_cpu, native_cuda

_OP = "distillation_loss"


def distillation_loss(
    student: Tensor,
    teacher: Tensor,
    *,
    student_temp: float,
    teacher_temp: float | None,
    center: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """Cross-entropy of every student crop to every other teacher crop (DINO, arXiv:2104.14294, algorithm 1).

    With ``q = softmax(student / student_temp)`` and ``p = softmax((teacher - center) / teacher_temp)`` over the K
    prototypes: the mean over samples b and pairs (t, s), s != t, of ``-<p_tb, log q_sb>``. Crop i of the teacher and
    crop i of the student are the same crop: those that the teacher sees come first. Memory beyond the inputs and the
    student's gradient does not grow with S K or T K. Deterministic, and the same bits for any number of threads.

    Args:
        student: (S, B, K) logits of S crops; float32, bfloat16, float16 or float64. Sums are in float32, or float64.
        teacher: (T, B, K) logits of T crops, or probabilities; of any of these dtypes, but float64 only together with
            a float64 student. It gets no gradient.
        student_temp: finite, > 0.
        teacher_temp: finite, > 0; or None if the teacher's rows are probabilities already, as ``sinkhorn_knopp`` makes
            them. They are used as they are, and need not add up to 1.
        center: (K) subtracted from the teacher's logits, floating-point; or None. No gradient. It is copied, so
            ``update_center_`` may move it before the backward.
        backend: the backend that must serve the call; by default our kernel if it can (see ``fastssl.ops.explain``).
    Returns:
        The scalar loss in nats, in float32 (float64 for a float64 student). Under autocast nothing needs to be cast.
    Raises:
        TypeError: for dtypes other than those above.
        ValueError: for other shapes or no elements, a batch of crops without a pair (one student crop and one teacher
            crop), two devices, a temperature that is not finite and positive, or a center of probabilities.
        RuntimeError: if ``backend`` cannot serve the call, or on a second derivative, which is not supported.
    """
    _check.crops(_OP, student, teacher)
    student_temp = _check.positive(_OP, "student_temp", student_temp)
    if teacher_temp is not None:
        teacher_temp = _check.positive(_OP, "teacher_temp", teacher_temp)
    if center is not None:
        center = _checked_center(center, teacher, teacher_temp)
    loss: Tensor = _forward.call(student, teacher.detach(), center, student_temp, teacher_temp, backend)[0]
    return loss


def _checked_center(center: Tensor, teacher: Tensor, teacher_temp: float | None) -> Tensor:
    _check.float_tensor(_OP, "center", center, "K")
    if teacher_temp is None:
        raise ValueError(f"{_OP}: teacher_temp=None says that the teacher holds probabilities, which take no center")
    if len(center) != teacher.shape[2]:
        raise ValueError(f"{_OP}: center must have the {teacher.shape[2]} prototypes of the teacher; got {len(center)}")
    _check.one_device(_OP, ("teacher", teacher), ("center", center))
    return center.detach()


def reference(
    student: Tensor, teacher: Tensor, center: Tensor | None, student_temp: float, teacher_temp: float | None
) -> Tensor:
    """The formula in plain torch, one pair at a time."""
    losses = []
    for t, p in enumerate(_teacher_probabilities(teacher, center, teacher_temp)):
        for s, logits in enumerate(student):
            if s != t:
                losses.append(torch.sum(-p * log_softmax(logits / student_temp, dim=-1), dim=-1).mean())
    return torch.stack(losses).mean()


def _teacher_probabilities(teacher: Tensor, center: Tensor | None, teacher_temp: float | None) -> Tensor:
    teacher = teacher.detach()
    if teacher_temp is None:
        return teacher
    return softmax((teacher if center is None else teacher - center) / teacher_temp, dim=-1)


def _widened(student: Tensor, teacher: Tensor, center: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """The inputs, without gradient, in what sums are kept in."""
    wide = _native.accumulator(student.dtype)
    return student.detach().to(wide), teacher.to(wide), None if center is None else center.to(wide)


def _reference_forward(
    student: Tensor, teacher: Tensor, center: Tensor | None, student_temp: float, teacher_temp: float | None
) -> tuple[Tensor, Tensor, Tensor]:
    kept = _kept(student, center)
    student, teacher, center = _widened(student, teacher, center)
    rows = [student / student_temp]
    if teacher_temp is not None:
        rows.append((teacher if center is None else teacher - center) / teacher_temp)
    logits = torch.cat(rows)
    maximum = logits.amax(2)
    stats = torch.stack([maximum, (logits - maximum[..., None]).exp().sum(2).log()])
    if teacher_temp is None:
        mass = teacher.sum(2)
        stats = torch.cat([stats, torch.stack([torch.zeros_like(mass), mass])], dim=1)
    with torch.autocast(student.device.type, enabled=False):
        return reference(student, teacher, center, student_temp, teacher_temp), stats, kept


def _reference_backward(
    grad: Tensor,
    student: Tensor,
    teacher: Tensor,
    center: Tensor | None,
    stats: Tensor,
    student_temp: float,
    teacher_temp: float | None,
) -> Tensor:
    dtype, (students, teachers) = student.dtype, (len(student), len(teacher))
    student, teacher, center = _widened(student, teacher, center)
    p = _teacher_probabilities(teacher, center, teacher_temp)
    q = (student / student_temp - stats[0, :students, :, None] - stats[1, :students, :, None]).exp()
    pairs = students * teachers - min(students, teachers)
    grads = torch.empty_like(student)
    for s in range(students):
        taught = sum((p[t] for t in range(teachers) if t != s), torch.zeros_like(p[0]))
        grads[s] = (q[s] * taught.sum(-1, keepdim=True) - taught) * (grad / (student_temp * pairs * student.shape[1]))
    return grads.to(dtype)


def _kept(student: Tensor, center: Tensor | None) -> Tensor:
    """A copy of the center in what sums are kept in; no elements where there is no center."""
    dtype = _native.accumulator(student.dtype)
    return student.new_empty(0, dtype=dtype) if center is None else center.to(dtype, copy=True).contiguous()


def _fake_forward(
    student: Tensor,
    teacher: Tensor,
    center: Tensor | None,
    student_temp: float,
    teacher_temp: float | None,
    backend: str | None,
) -> tuple[Tensor, Tensor, Tensor]:
    dtype = _native.accumulator(student.dtype)
    rows = student.shape[0] + teacher.shape[0]
    stats = student.new_empty((2, rows, student.shape[1]), dtype=dtype)
    return student.new_empty((), dtype=dtype), stats, _kept(student, center)


def _fake_backward(grad: Tensor, student: Tensor, *_: Any) -> Tensor:
    return student.new_empty(student.shape)


def _native_arguments(
    student: Tensor, teacher: Tensor, center: Tensor | None
) -> tuple[tuple[int, int, int], tuple[int, ...]]:
    """The addresses, and the sizes and dtypes, as both kernels take them."""
    addresses = (student.data_ptr(), teacher.data_ptr(), 0 if center is None else center.data_ptr())
    sizes = (student.shape[0], teacher.shape[0], *student.shape[1:])
    return addresses, (*sizes, _native.DTYPES[student.dtype], _native.DTYPES[teacher.dtype])


def _run_forward(
    kernel: Callable[..., None],
    student: Tensor,
    teacher: Tensor,
    center: Tensor | None,
    student_temp: float,
    teacher_temp: float | None,
    *last: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """A native kernel, whose last arguments are the number of threads, or scratch memory and the stream."""
    student, teacher = student.contiguous(), teacher.contiguous()
    loss, stats, kept = _fake_forward(student, teacher, center, student_temp, teacher_temp, None)
    addresses, sizes = _native_arguments(student, teacher, None if center is None else kept)
    kernel(*addresses, *sizes, student_temp, teacher_temp or 0.0, loss.data_ptr(), stats.data_ptr(), *last)
    return loss, stats, kept


def _run_backward(
    kernel: Callable[..., None],
    last: int,
    grad: Tensor,
    student: Tensor,
    teacher: Tensor,
    center: Tensor | None,
    stats: Tensor,
    student_temp: float,
    teacher_temp: float | None,
) -> Tensor:
    """A native kernel, whose last argument is the number of threads or the stream."""
    student, teacher, stats = student.contiguous(), teacher.contiguous(), stats.contiguous()
    center = None if center is None else center.contiguous()
    grads = _fake_backward(grad, student)
    addresses, sizes = _native_arguments(student, teacher, center)
    temperatures = (student_temp, teacher_temp or 0.0)
    kernel(grad.data_ptr(), *addresses, stats.data_ptr(), *sizes, *temperatures, grads.data_ptr(), last)
    return grads


def _cpu_forward(student: Tensor, *others: Any) -> tuple[Tensor, Tensor, Tensor]:
    return _run_forward(_native.cpu.distillation_loss_forward, student, *others, _native.threads())


def _cpu_backward(grad: Tensor, student: Tensor, *others: Any) -> Tensor:
    return _run_backward(_native.cpu.distillation_loss_backward, _native.threads(), grad, student, *others)


def _cuda_forward(student: Tensor, teacher: Tensor, *others: Any) -> tuple[Tensor, Tensor, Tensor]:
    sizes = (student.shape[0], teacher.shape[0], *student.shape[1:], _native.DTYPES[student.dtype])
    scratch = _native.scratch(student, _native.cuda.distillation_loss_scratch(*sizes))
    with torch.cuda.device(student.device):
        last = (scratch.data_ptr(), _native.stream(student))
        return _run_forward(_native.cuda.distillation_loss_forward, student, teacher, *others, *last)


def _cuda_backward(grad: Tensor, student: Tensor, *others: Any) -> Tensor:
    with torch.cuda.device(student.device):
        stream = _native.stream(student)
        return _run_backward(_native.cuda.distillation_loss_backward, stream, grad, student, *others)


def _tensors(student: Tensor, teacher: Tensor, center: Tensor | None, *_: Any) -> tuple[Tensor, ...]:
    return (student, teacher) if center is None else (student, teacher, center)


def _example(device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    return torch.randn(3, 4, 8, device=device), torch.randn(2, 4, 8, device=device), torch.zeros(8, device=device)


def _cuda_unsupported(student: Tensor, *call: Any) -> str | None:
    return native_cuda(*_tensors(student, *call), blocks=student.shape[1])


_TENSORS = "Tensor student, Tensor teacher, Tensor? center"
_SETTINGS = "float student_temp, float? teacher_temp, str? backend"
_forward = Op(
    f"{_OP}({_TENSORS}, {_SETTINGS}) -> (Tensor, Tensor, Tensor)",
    {
        "cuda": Implementation(_cuda_forward, _cuda_unsupported),
        "cpu": Implementation(_cpu_forward, lambda *call: native_cpu(*_tensors(*call))),
        "reference": Implementation(_reference_forward, anything),
    },
    _fake_forward,
    lambda device: (*_example(device), 0.1, 0.04),
)
_backward = Op(
    f"{_OP}_backward(Tensor grad, {_TENSORS}, Tensor stats, {_SETTINGS}) -> Tensor",
    {
        "cuda": Implementation(_cuda_backward, lambda grad, *call: _cuda_unsupported(*call)),
        "cpu": Implementation(_cpu_backward, lambda grad, *call: native_cpu(*_tensors(*call))),
        "reference": Implementation(_reference_backward, anything),
    },
    _fake_backward,
    lambda device: (
        torch.ones((), device=device),
        *_example(device),
        torch.stack([torch.full((5, 4), 30.0, device=device), torch.zeros(5, 4, device=device)]),
        0.1,
        0.04,
    ),
)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    student, teacher, center, *ctx.settings = inputs
    _, stats, kept = output
    ctx.save_for_backward(student, teacher, None if center is None else kept, stats)
    ctx.mark_non_differentiable(stats, kept)


def _differentiate(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    student, teacher, center, stats = ctx.saved_tensors
    needed = ctx.needs_input_grad[0]
    grads = _backward.call(grad, student, teacher, center, stats, *ctx.settings) if needed else None
    return grads, None, None, None, None, None


def _refuse_second_derivative(ctx: Any, *_: Any) -> None:
    raise RuntimeError(f"{_OP}: second derivatives are not supported")


torch.library.register_autograd(f"fastssl::{_OP}", _differentiate, setup_context=_setup_context)
torch.library.register_autograd(f"fastssl::{_OP}_backward", _refuse_second_derivative)
