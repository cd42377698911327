"""SigLIP's sigmoid loss of image and text features; the N x N logits are never stored.

With l = scale a b^T + bias and z = 1 on the diagonal and -1 elsewhere, dloss/dl = -z sigmoid(-z l) / N needs no sum
over others, so the forward finds all gradients too; the backward multiplies them by what comes from above.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastssl.ops import _check, _native
from fastssl.ops._backend import Implementation, Op, anything, native_cpu, triton, triton_rows
from fastssl.ops._crossover import crossover, storable

_OP = "siglip_loss"


def siglip_loss(
    a: Tensor,
    b: Tensor,
    *,
    logit_scale: float | Tensor,
    logit_bias: float | Tensor,
    backend: str | None = None,
) -> Tensor:
    """Binary cross-entropy of every pair, matching or not (SigLIP, arXiv:2303.15343, eq. 1).

    ``-1/N sum_ij log sigmoid(z_ij (logit_scale * <a_i, b_j> + logit_bias))``, with z 1 where i = j and -1 elsewhere.
    Rows are taken as they are: normalise them first. Memory beyond the inputs and their gradients grows with N D, not
    with N^2. Deterministic, and by our kernels the same bits for any number of threads; on a CPU, where plain torch
    measured faster, at most 512 rows or N <= D, it serves the call. Under autocast the inputs, unless float64, are cast
    to float32, as torch does for losses.

    Args:
        a: (N, D) features of the images; float32, bfloat16, float16 or float64. Sums are in float32, or float64.
        b: (N, D) features of their texts, in the same order; dtype and device of ``a``.
        logit_scale: finite (the paper begins at 10); or a floating-point tensor without dimensions, which receives a
            gradient and whose value is not checked.
        logit_bias: finite (the paper begins at -10); or a tensor, likewise.
        backend: the backend that must serve the call; by default our kernel if it can, or plain torch
            where that measured faster (see ``fastssl.ops.explain``).
    Returns:
        The scalar loss in nats, in float32 (float64 for float64 inputs).
    Raises:
        TypeError: for a dtype that is not one of the above, or two different ones.
        ValueError: for other shapes, an empty batch, two devices, or a scale or bias that is not finite.
        RuntimeError: if ``backend`` cannot serve the call, or on a second derivative, which is not supported.
    """
    a, b = _check.pairs(_OP, a, b)
    bias = _check.scale(_OP, "logit_bias", logit_bias, a)
    a, scale = _check.scaled(a, _check.scale(_OP, "logit_scale", logit_scale, a))
    dtype = _native.accumulator(a.dtype)
    if isinstance(bias, Tensor):
        bias = bias.to(device=a.device, dtype=dtype)
    else:
        bias = torch.full((), bias, device=a.device, dtype=dtype)
    wanted = (x.requires_grad and torch.is_grad_enabled() for x in (a, b))
    loss: Tensor = _forward.call(a, b, bias, scale, *wanted, backend)[0]
    return loss


def reference(a: Tensor, b: Tensor, logit_scale: float | Tensor, logit_bias: float | Tensor) -> Tensor:
    """The formula in plain torch."""
    logits = logit_scale * a @ b.T + logit_bias
    signs = 2 * torch.eye(len(a), device=a.device, dtype=a.dtype) - 1
    return -torch.nn.functional.logsigmoid(signs * logits).sum() / len(a)


def _reference_forward(
    a: Tensor, b: Tensor, bias: Tensor, scale: float, for_a: bool, for_b: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    a, b = a.to(bias.dtype), b.to(bias.dtype)
    with torch.autocast(a.device.type, enabled=False):
        signs = 2 * torch.eye(len(a), device=a.device, dtype=a.dtype) - 1
        weights = -signs * torch.sigmoid(-signs * (scale * a @ b.T + bias)) / len(a)
        direction_a, direction_b = weights @ b * scale, weights.T @ a * scale
        wanted_a, wanted_b = direction_a[: len(a) * for_a].clone(), direction_b[: len(b) * for_b].clone()
        return reference(a, b, scale, bias), weights.sum(), wanted_a, wanted_b


def _reference_backward(
    grad: Tensor, direction_a: Tensor, direction_b: Tensor, a: Tensor, b: Tensor
) -> tuple[Tensor, Tensor]:
    return (grad * direction_a).to(a.dtype, copy=True), (grad * direction_b).to(b.dtype, copy=True)


def _fake_forward(
    a: Tensor, b: Tensor, bias: Tensor, scale: float, for_a: bool, for_b: bool, backend: str | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    n, d = a.shape
    shapes = ((), (), (n if for_a else 0, d), (n if for_b else 0, d))
    loss, slope, direction_a, direction_b = (bias.new_empty(shape) for shape in shapes)
    return loss, slope, direction_a, direction_b


def _fake_backward(
    grad: Tensor, direction_a: Tensor, direction_b: Tensor, a: Tensor, b: Tensor, backend: str | None
) -> tuple[Tensor, Tensor]:
    return a.new_empty(direction_a.shape), b.new_empty(direction_b.shape)


def _cpu_forward(
    a: Tensor, b: Tensor, bias: Tensor, scale: float, for_a: bool, for_b: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    a, b = a.contiguous(), b.contiguous()
    out = _fake_forward(a, b, bias, scale, for_a, for_b, None)
    _native.cpu.siglip_loss_forward(
        a.data_ptr(),
        b.data_ptr(),
        bias.data_ptr(),
        *a.shape,
        _native.DTYPES[a.dtype],
        _native.DTYPES[b.dtype],
        scale,
        *(tensor.data_ptr() for tensor in out),  # 0, for not wanted, where empty
        _native.threads(),
    )
    return out


def _cpu_backward(
    grad: Tensor, direction_a: Tensor, direction_b: Tensor, a: Tensor, b: Tensor
) -> tuple[Tensor, Tensor]:
    out = _fake_backward(grad, direction_a, direction_b, a, b, None)
    for direction, result in zip((direction_a.contiguous(), direction_b.contiguous()), out, strict=True):
        _native.cpu.siglip_loss_backward(
            grad.data_ptr(),
            direction.data_ptr(),
            direction.numel(),
            _native.DTYPES[result.dtype],
            grad.dtype == torch.float64,
            result.data_ptr(),
            _native.threads(),
        )
    return out


def _example(device: torch.device) -> list[Tensor]:
    return [torch.nn.functional.normalize(torch.randn(5, 4, device=device), dim=1) for _ in range(2)]


def _sizes(a: Tensor) -> dict[str, int] | None:
    """What the choice of the reference looks at. The backward, which only scales, is the kernel's in any case."""
    n, d = a.shape
    return {"n": n, "d": d} if storable(n**2, n * d) else None


_forward = Op(
    f"{_OP}(Tensor a, Tensor b, Tensor bias, float scale, bool for_a, bool for_b, str? backend)"
    " -> (Tensor, Tensor, Tensor, Tensor)",
    {
        "triton": Implementation(
            triton(_OP, "forward"),
            lambda a, b, *_: triton_rows(a, b),
            crossover(_OP, lambda a, *_: _sizes(a), "cuda"),
        ),
        "cpu": Implementation(
            _cpu_forward, lambda a, b, bias, *_: native_cpu(a, b, bias), crossover(_OP, lambda a, *_: _sizes(a))
        ),
        "reference": Implementation(_reference_forward, anything),
    },
    _fake_forward,
    lambda device: (*_example(device), torch.tensor(-1.0, device=device), 10.0, True, True),
)
_backward = Op(
    f"{_OP}_backward(Tensor grad, Tensor direction_a, Tensor direction_b, Tensor a, Tensor b, str? backend)"
    " -> (Tensor, Tensor)",
    {
        "triton": Implementation(triton(_OP, "backward"), lambda grad, *rows: triton_rows(*rows)),
        "cpu": Implementation(_cpu_backward, lambda *tensors: native_cpu(*tensors)),
        "reference": Implementation(_reference_backward, anything),
    },
    _fake_backward,
    lambda device: (torch.ones((), device=device), *_example(device), *_example(device)),
)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor, Tensor]) -> None:
    a, b, _, _, for_a, for_b, ctx.backend = inputs
    ctx.wanted = (for_a, for_b)
    ctx.save_for_backward(*output[1:], a, b)
    ctx.mark_non_differentiable(*output[1:])


def _differentiate(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    slope, *tensors = ctx.saved_tensors
    grads = _backward.call(grad, *tensors, ctx.backend)
    wanted = (want and need for want, need in zip(ctx.wanted, ctx.needs_input_grad[:2], strict=True))
    of_rows = (part if want else None for part, want in zip(grads, wanted, strict=True))
    return *of_rows, grad * slope if ctx.needs_input_grad[2] else None, None, None, None, None


def _refuse_second_derivative(ctx: Any, *_: Any) -> None:
    raise RuntimeError(f"{_OP}: second derivatives are not supported")


torch.library.register_autograd(f"fastssl::{_OP}", _differentiate, setup_context=_setup_context)
torch.library.register_autograd(f"fastssl::{_OP}_backward", _refuse_second_derivative)
