"""CLIP's symmetric cross-entropy of image and text features; the N x N logits are never stored.

With s = scale a b^T, P the softmax of its rows and Q that of its columns, dloss/ds = (P + Q - 2 I) / 2N: the backward
needs only what the forward keeps of each row and column: its maximum, the log of what is left of its sum, and
1 - P(own pair), (6, N).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastssl.ops import _check, _native
from fastssl.ops._backend import Implementation, Op, anything, native_cpu, triton, triton_rows
from fastssl.ops._crossover import crossover, storable

_OP = "clip_loss"


def clip_loss(a: Tensor, b: Tensor, *, logit_scale: float | Tensor, backend: str | None = None) -> Tensor:
    """The mean of both directions' cross-entropies over pairs (CLIP, arXiv:2103.00020, figure 3; open_clip's ClipLoss).

    With ``s_ij = logit_scale * <a_i, b_j>``: the mean of ``-log softmax(s)_ii`` over rows and over columns. Rows are
    taken as they are: normalise them first. Memory beyond the inputs and their gradients grows with N D, not with N^2.
    Deterministic, and by our kernels the same bits for any number of threads; on a CPU, where plain torch measured
    faster, at most 512 rows or N <= D, it serves the call. Under autocast the inputs, unless float64, are cast to
    float32, as torch does for losses.

    Args:
        a: (N, D) features of the images; float32, bfloat16, float16 or float64. Sums are in float32, or float64.
        b: (N, D) features of their texts, in the same order; dtype and device of ``a``.
        logit_scale: finite; or a floating-point tensor without dimensions, which receives a gradient and whose value is
            not checked.
        backend: the backend that must serve the call; by default our kernel if it can, or plain torch
            where that measured faster (see ``fastssl.ops.explain``).
    Returns:
        The scalar loss in nats, in float32 (float64 for float64 inputs).
    Raises:
        TypeError: for a dtype that is not one of the above, or two different ones.
        ValueError: for other shapes, an empty batch, two devices, or a scale that is not finite.
        RuntimeError: if ``backend`` cannot serve the call, or on a second derivative, which is not supported.
    """
    a, b = _check.pairs(_OP, a, b)
    a, scale = _check.scaled(a, _check.scale(_OP, "logit_scale", logit_scale, a))
    loss: Tensor = _forward.call(a, b, scale, backend)[0]
    return loss


def reference(a: Tensor, b: Tensor, logit_scale: float | Tensor) -> Tensor:
    """The formula in plain torch, as open_clip computes it on one device."""
    logits = logit_scale * a @ b.T
    own = torch.arange(len(a), device=a.device)
    cross_entropy = torch.nn.functional.cross_entropy
    return (cross_entropy(logits, own) + cross_entropy(logits.T, own)) / 2


def _side(logits: Tensor) -> Tensor:
    """For each row: the two parts of its log-sum-exp, and the share of the others in its softmax."""
    maximum = logits.amax(1)
    share = logits.softmax(1).fill_diagonal_(0).sum(1)
    return torch.stack([maximum, (logits - maximum[:, None]).exp().sum(1).log(), share])


def _reference_forward(a: Tensor, b: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    a, b = (x.to(_native.accumulator(a.dtype)) for x in (a, b))
    with torch.autocast(a.device.type, enabled=False):
        logits = scale * a @ b.T
        return reference(a, b, scale), torch.cat([_side(logits), _side(logits.T)])


def _reference_backward(
    grad: Tensor, a: Tensor, b: Tensor, statistics: Tensor, scale: float, for_a: bool, for_b: bool
) -> tuple[Tensor, Tensor]:
    wide_a, wide_b = a.to(grad.dtype), b.to(grad.dtype)
    with torch.autocast(a.device.type, enabled=False):
        logits = scale * wide_a @ wide_b.T
        p = (logits - statistics[0][:, None] - statistics[1][:, None]).exp()
        q = (logits - statistics[3] - statistics[4]).exp()
        weights = p + q
        weights.diagonal().copy_(-(statistics[2] + statistics[5]))
        weights *= grad * scale / (2 * len(a))
        grads = (weights @ wide_b).to(a.dtype), (weights.T @ wide_a).to(b.dtype)
    return grads[0][: len(a) * for_a].clone(), grads[1][: len(b) * for_b].clone()


def _fake_forward(a: Tensor, b: Tensor, scale: float, backend: str | None) -> tuple[Tensor, Tensor]:
    dtype = _native.accumulator(a.dtype)
    return a.new_empty((), dtype=dtype), a.new_empty((6, a.shape[0]), dtype=dtype)


def _fake_backward(
    grad: Tensor, a: Tensor, b: Tensor, statistics: Tensor, scale: float, for_a: bool, for_b: bool, backend: str | None
) -> tuple[Tensor, Tensor]:
    n, d = a.shape
    return a.new_empty((n if for_a else 0, d)), b.new_empty((n if for_b else 0, d))


def _cpu_forward(a: Tensor, b: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    a, b = a.contiguous(), b.contiguous()
    loss, statistics = _fake_forward(a, b, scale, None)
    _native.cpu.clip_loss_forward(
        a.data_ptr(),
        b.data_ptr(),
        *a.shape,
        _native.DTYPES[a.dtype],
        _native.DTYPES[b.dtype],
        scale,
        loss.data_ptr(),
        statistics.data_ptr(),
        _native.threads(),
    )
    return loss, statistics


def _cpu_backward(
    grad: Tensor, a: Tensor, b: Tensor, statistics: Tensor, scale: float, for_a: bool, for_b: bool
) -> tuple[Tensor, Tensor]:
    a, b, statistics = a.contiguous(), b.contiguous(), statistics.contiguous()
    grads = _fake_backward(grad, a, b, statistics, scale, for_a, for_b, None)
    _native.cpu.clip_loss_backward(
        grad.data_ptr(),
        a.data_ptr(),
        b.data_ptr(),
        statistics.data_ptr(),
        *a.shape,
        _native.DTYPES[a.dtype],
        _native.DTYPES[b.dtype],
        scale,
        *(tensor.data_ptr() for tensor in grads),  # 0, for not wanted, where empty
        _native.threads(),
    )
    return grads


def _example(device: torch.device) -> list[Tensor]:
    return [torch.nn.functional.normalize(torch.randn(5, 4, device=device), dim=1) for _ in range(2)]


def _sizes(a: Tensor) -> dict[str, int] | None:
    """What the choice of the reference looks at."""
    n, d = a.shape
    return {"n": n, "d": d} if storable(n**2, n * d) else None


_forward = Op(
    f"{_OP}(Tensor a, Tensor b, float scale, str? backend) -> (Tensor, Tensor)",
    {
        "triton": Implementation(
            triton(_OP, "forward"),
            lambda a, b, scale: triton_rows(a, b),
            crossover(_OP, lambda a, b, scale: _sizes(a), "cuda"),
        ),
        "cpu": Implementation(
            _cpu_forward, lambda a, b, scale: native_cpu(a, b), crossover(_OP, lambda a, b, scale: _sizes(a))
        ),
        "reference": Implementation(_reference_forward, anything),
    },
    _fake_forward,
    lambda device: (*_example(device), 10.0),
)
_backward = Op(
    f"{_OP}_backward(Tensor grad, Tensor a, Tensor b, Tensor statistics, float scale, bool for_a, bool for_b,"
    " str? backend) -> (Tensor, Tensor)",
    {
        "triton": Implementation(
            triton(_OP, "backward"),
            lambda grad, a, b, *_: triton_rows(a, b),
            crossover(_OP, lambda grad, a, *_: _sizes(a), "cuda"),
        ),
        "cpu": Implementation(
            _cpu_backward, lambda grad, a, b, *_: native_cpu(a, b), crossover(_OP, lambda grad, a, *_: _sizes(a))
        ),
        "reference": Implementation(_reference_backward, anything),
    },
    _fake_backward,
    lambda device: (
        torch.ones((), device=device),
        *_example(device),
        torch.full((6, 5), 1.5, device=device),
        1.0,
        True,
        True,
    ),
)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    a, b, ctx.scale, ctx.backend = inputs
    ctx.save_for_backward(a, b, output[1])
    ctx.mark_non_differentiable(output[1])


def _differentiate(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    wanted = ctx.needs_input_grad[:2]
    grads = _backward.call(grad, *ctx.saved_tensors, ctx.scale, *wanted, ctx.backend)
    return *(part if want else None for part, want in zip(grads, wanted, strict=True)), None, None


def _refuse_second_derivative(ctx: Any, *_: Any) -> None:
    raise RuntimeError(f"{_OP}: second derivatives are not supported")


torch.library.register_autograd(f"fastssl::{_OP}", _differentiate, setup_context=_setup_context)
torch.library.register_autograd(f"fastssl::{_OP}_backward", _refuse_second_derivative)
