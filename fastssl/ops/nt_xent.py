"""NT-Xent, the SimCLR loss of two views; the 2N x 2N similarities are never stored.

With z the 2N rows of both views, s = z z^T / t without its diagonal, P the softmax of its rows and Pos the pairing
of the views, dloss/dz = (P + P^T - 2 Pos) z / (2N t): the backward needs only the log-sum-exps of the forward, each as
its row's maximum and the log of what is left, (2, 2N), for their sum would be rounded.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastssl.ops import _check, _native
from fastssl.ops._backend import Implementation, Op, anything, native_cpu, triton, triton_rows
from fastssl.ops._crossover import crossover, storable


def nt_xent(z0: Tensor, z1: Tensor, *, temperature: float | Tensor, backend: str | None = None) -> Tensor:
    """Normalised temperature-scaled cross-entropy of two views (SimCLR, arXiv:2002.05709, eq. 1).

    The mean over all 2N rows i of ``-log(exp(s_ip) / sum_{j != i} exp(s_ij))``, where ``s = <z_i, z_j> / temperature``
    and p is the other view of i. Rows are taken as they are: normalise them first (``fastssl.losses.NTXent`` does).
    Memory beyond the inputs and their gradients grows with N D, not with N^2. Deterministic, and by our kernels the
    same bits for any number of threads; on a CPU, where plain torch measured faster, at most 512 rows or 2N <= D, it
    serves the call. Under autocast the inputs, unless float64, are cast to float32, as torch does for losses.

    Args:
        z0: (N, D) features of the first view; float32, bfloat16, float16 or float64. Sums are in float32, or float64.
        z1: (N, D) features of the second view, in the same order; dtype and device of ``z0``.
        temperature: finite, > 0; or a floating-point tensor without dimensions, which receives a gradient and whose
            value is not checked: that would wait for its device. The rows are then scaled by it in float32 copies.
        backend: the backend that must serve the call; by default our kernel if it can, or plain torch
            where that measured faster (see ``fastssl.ops.explain``).
    Returns:
        The scalar loss in nats, in float32 (float64 for float64 inputs).
    Raises:
        TypeError: for a dtype that is not one of the above, or two different ones.
        ValueError: for other shapes, an empty batch, two devices, or a temperature that is not finite and positive.
        RuntimeError: if ``backend`` cannot serve the call, or on a second derivative, which is not supported.
    """
    _check.float_tensor("nt_xent", "z0", z0, "ND")
    _check.float_tensor("nt_xent", "z1", z1, "ND")
    scale = _check.scale("nt_xent", "temperature", temperature, z0, above_zero=True)
    if z0.shape != z1.shape:
        raise ValueError(
            f"nt_xent: z0 and z1 must have the same shape (N, D); got {_check.shape(z0)} and {_check.shape(z1)}"
        )
    if z0.numel() == 0:
        raise ValueError(f"nt_xent: needs at least one sample and one feature; got {_check.shape(z0)}")
    z0, z1 = _check.as_autocast_casts(z0), _check.as_autocast_casts(z1)
    _check.alike("nt_xent", ("z0", z0), ("z1", z1))
    if isinstance(scale, Tensor):  # <z_i, z_j> / t is the product of two rows, each divided by the root of t
        _check.one_device("nt_xent", ("z0", z0), ("temperature", scale))
        root = scale.to(_native.accumulator(z0.dtype)).rsqrt()  # of a narrow type, it would be rounded
        (z0, _), (z1, scale) = _check.scaled(z0, root), _check.scaled(z1, root)
    loss: Tensor = _forward.call(z0, z1, scale, backend)[0]
    return loss


def reference(z0: Tensor, z1: Tensor, temperature: float | Tensor) -> Tensor:
    """The formula in plain torch: cross-entropy of each row against its other view, its own column left out."""
    rows = torch.cat([z0, z1])
    own = torch.eye(len(rows), dtype=torch.bool, device=rows.device)
    logits = (rows @ rows.T / temperature).masked_fill(own, float("-inf"))
    other_view = torch.arange(len(rows), device=rows.device).roll(len(z0))
    return torch.nn.functional.cross_entropy(logits, other_view)


def _reference_forward(z0: Tensor, z1: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    z0, z1 = (z.to(_native.accumulator(z.dtype)) for z in (z0, z1))
    with torch.autocast(z0.device.type, enabled=False):
        rows = torch.cat([z0, z1])
        logits = (rows @ rows.T / temperature).fill_diagonal_(float("-inf"))
        maximum = logits.amax(1)
        log_total = (logits - maximum[:, None]).exp().sum(1).log()
        return reference(z0, z1, temperature), torch.stack([maximum, log_total])


def _reference_backward(grad: Tensor, z0: Tensor, z1: Tensor, lse: Tensor, temperature: float) -> Tensor:
    rows = torch.cat([z0, z1]).to(grad.dtype)
    with torch.autocast(z0.device.type, enabled=False):
        p = (rows @ rows.T / temperature - lse[0][:, None] - lse[1][:, None]).exp().fill_diagonal_(0)
        weights = p + p.T
        i = torch.arange(len(rows), device=rows.device)
        weights[i, i.roll(len(z0))] -= 2
        return (weights @ rows * (grad / (temperature * len(rows)))).to(z0.dtype)


def _fake_forward(z0: Tensor, z1: Tensor, temperature: float, backend: str | None) -> tuple[Tensor, Tensor]:
    dtype = _native.accumulator(z0.dtype)
    return z0.new_empty((), dtype=dtype), z0.new_empty((2, 2 * z0.shape[0]), dtype=dtype)


def _fake_backward(
    grad: Tensor, z0: Tensor, z1: Tensor, lse: Tensor, temperature: float, backend: str | None
) -> Tensor:
    return z0.new_empty((2 * z0.shape[0], z0.shape[1]))


def _cpu_forward(z0: Tensor, z1: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    z0, z1 = z0.contiguous(), z1.contiguous()
    loss, lse = _fake_forward(z0, z1, temperature, None)
    _native.cpu.nt_xent_forward(
        z0.data_ptr(),
        z1.data_ptr(),
        *z0.shape,
        _native.DTYPES[z0.dtype],
        temperature,
        loss.data_ptr(),
        lse.data_ptr(),
        _native.threads(),
    )
    return loss, lse


def _cpu_backward(grad: Tensor, z0: Tensor, z1: Tensor, lse: Tensor, temperature: float) -> Tensor:
    z0, z1, lse = z0.contiguous(), z1.contiguous(), lse.contiguous()
    grads = _fake_backward(grad, z0, z1, lse, temperature, None)
    _native.cpu.nt_xent_backward(
        grad.data_ptr(),
        z0.data_ptr(),
        z1.data_ptr(),
        lse.data_ptr(),
        *z0.shape,
        _native.DTYPES[z0.dtype],
        temperature,
        grads.data_ptr(),
        grads[len(z0) :].data_ptr(),
        _native.threads(),
    )
    return grads


def _example_views(device: torch.device) -> list[Tensor]:
    return [torch.nn.functional.normalize(torch.randn(8, 4, device=device), dim=1) for _ in range(2)]


def _sizes(z0: Tensor) -> dict[str, int] | None:
    """What the choice of the reference looks at."""
    rows, d = 2 * z0.shape[0], z0.shape[1]
    return {"rows": rows, "d": d} if storable(rows**2, rows * d) else None


_forward = Op(
    "nt_xent(Tensor z0, Tensor z1, float temperature, str? backend) -> (Tensor, Tensor)",
    {
        "triton": Implementation(
            triton("nt_xent", "forward"),
            lambda z0, z1, t: triton_rows(z0, z1),
            crossover("nt_xent", lambda z0, z1, t: _sizes(z0), "cuda"),
        ),
        "cpu": Implementation(
            _cpu_forward, lambda z0, z1, t: native_cpu(z0, z1), crossover("nt_xent", lambda z0, z1, t: _sizes(z0))
        ),
        "reference": Implementation(_reference_forward, anything),
    },
    _fake_forward,
    lambda device: (*_example_views(device), 0.5),
)
_backward = Op(
    "nt_xent_backward(Tensor grad, Tensor z0, Tensor z1, Tensor lse, float temperature, str? backend) -> Tensor",
    {
        "triton": Implementation(
            triton("nt_xent", "backward"),
            lambda grad, z0, z1, lse, t: triton_rows(z0, z1),
            crossover("nt_xent", lambda grad, z0, z1, lse, t: _sizes(z0), "cuda"),
        ),
        "cpu": Implementation(
            _cpu_backward,
            lambda grad, z0, z1, lse, t: native_cpu(z0, z1),
            crossover("nt_xent", lambda grad, z0, z1, lse, t: _sizes(z0)),
        ),
        "reference": Implementation(_reference_backward, anything),
    },
    _fake_backward,
    lambda device: (
        torch.ones((), device=device),
        *_example_views(device),
        torch.full((2, 16), 1.35, device=device),
        0.5,
    ),
)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    z0, z1, ctx.temperature, ctx.backend = inputs
    ctx.save_for_backward(z0, z1, output[1])
    ctx.mark_non_differentiable(output[1])


def _differentiate(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    z0, z1, lse = ctx.saved_tensors
    grads = _backward.call(grad, z0, z1, lse, ctx.temperature, ctx.backend)
    grad0, grad1 = (part if need else None for part, need in zip(grads.chunk(2), ctx.needs_input_grad[:2], strict=True))
    return grad0, grad1, None, None


def _refuse_second_derivative(ctx: Any, *_: Any) -> None:
    raise RuntimeError("nt_xent: second derivatives are not supported")


torch.library.register_autograd("fastssl::nt_xent", _differentiate, setup_context=_setup_context)
torch.library.register_autograd("fastssl::nt_xent_backward", _refuse_second_derivative)
