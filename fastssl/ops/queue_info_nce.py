"""InfoNCE against a queue of negatives, the loss of MoCo; the N x (1 + K) logits are never stored.

The queue has no gradient, so the pass that finds the log-sum-exps also finds the query's gradient: the backward
multiplies it by what comes from above. With P the softmax over the positive (column 0) and the queue,
dloss/dquery_i = (sum_j P_ij queue_j - (1 - P_i0) key_i) / (N t) and dloss/dkey_i = -(1 - P_i0) query_i / (N t).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastssl.ops import _check, _native
from fastssl.ops._backend import Implementation, Op, anything, native_cpu, triton, triton_cuda, triton_rows
from fastssl.ops._crossover import crossover, storable

_OP = "queue_info_nce"


def queue_info_nce(
    query: Tensor, key: Tensor, queue: Tensor, *, temperature: float, backend: str | None = None
) -> Tensor:
    """Cross-entropy of each query's key against a queue of negatives (MoCo, arXiv:1911.05722, eq. 1).

    The mean over the N rows of ``-log(exp(s_i) / (exp(s_i) + sum_j exp(s_ij)))``, where ``s_i = <query_i, key_i> /
    temperature`` and ``s_ij = <query_i, queue_j> / temperature``. Rows are taken as they are: normalise them first. The
    queue receives no gradient; the key receives one only if it asks (MoCo detaches it). Memory beyond the inputs grows
    with N D, not with N K. Deterministic, and by our kernels the same bits for any number of threads; on a CPU, where
    plain torch measured faster, at most 2^18 pairs or K <= D, it serves the call. Under autocast query and key, unless
    float64, are cast to float32, as torch does for losses; the queue is read as it is, and widened.

    Args:
        query: (N, D) features; float32, bfloat16, float16 or float64. Sums are in float32, or float64.
        key: (N, D) features of the positives, in the same order; dtype and device of ``query``.
        queue: (K, D) features of the negatives, K >= 0, of any of these dtypes; device of ``query``.
        temperature: finite, > 0.
        backend: the backend that must serve the call; by default our kernel if it can, or plain torch
            where that measured faster (see ``fastssl.ops.explain``).
    Returns:
        The scalar loss in nats, in float32 (float64 for float64 inputs).
    Raises:
        TypeError: for a dtype that is not one of the above, or a query and key of two dtypes.
        ValueError: for other shapes, an empty batch, two devices, or a temperature that is not finite and positive.
        RuntimeError: if ``backend`` cannot serve the call, or on a second derivative, which is not supported.
    """
    for name, rows, dims in (("query", query, "ND"), ("key", key, "ND"), ("queue", queue, "KD")):
        _check.float_tensor(_OP, name, rows, dims)
    temperature = _check.positive(_OP, "temperature", temperature)
    if query.shape != key.shape:
        raise ValueError(
            f"{_OP}: query and key must have the same shape (N, D); got {_check.shape(query)} and {_check.shape(key)}"
        )
    if query.shape[1] != queue.shape[1]:
        raise ValueError(
            f"{_OP}: query (N, D) and queue (K, D) must agree on D; got {_check.shape(query)} and {_check.shape(queue)}"
        )
    if query.numel() == 0:
        raise ValueError(f"{_OP}: needs at least one query and one feature; got {_check.shape(query)}")
    query, key = _check.as_autocast_casts(query), _check.as_autocast_casts(key)
    _check.alike(_OP, ("query", query), ("key", key))
    _check.one_device(_OP, ("query", query), ("queue", queue))
    for_query = query.requires_grad and torch.is_grad_enabled()
    loss: Tensor = _forward.call(query, key, queue, temperature, for_query, backend)[0]
    return loss


def reference(query: Tensor, key: Tensor, queue: Tensor, temperature: float) -> Tensor:
    """The formula in plain torch, as MoCo's own code computes it: cross-entropy of column 0."""
    found = logits(query, key, queue.detach().to(query.dtype), temperature)
    return torch.nn.functional.cross_entropy(found, torch.zeros(len(query), dtype=torch.int64, device=query.device))


def logits(query: Tensor, key: Tensor, queue: Tensor, temperature: float) -> Tensor:
    """(N, 1 + K): each query's product with its key in column 0, then those with the queue, over the temperature."""
    return torch.cat([(query * key).sum(1, keepdim=True), query @ queue.T], 1) / temperature


def _reference_forward(
    query: Tensor, key: Tensor, queue: Tensor, temperature: float, for_query: bool
) -> tuple[Tensor, Tensor, Tensor]:
    query, key, queue = (x.to(_native.accumulator(query.dtype)) for x in (query, key, queue))
    with torch.autocast(query.device.type, enabled=False):
        loss = reference(query, key, queue, temperature)
        others = logits(query, key, queue, temperature).softmax(1)[:, 1:]
        share = others.sum(1)
        direction = (others @ queue - share[:, None] * key) / (temperature * len(query))
        return loss, share, direction if for_query else direction.new_empty((0, query.shape[1]))


def _reference_backward(
    grad: Tensor, query: Tensor, share: Tensor, direction: Tensor, temperature: float, for_query: bool, for_key: bool
) -> tuple[Tensor, Tensor]:
    none = query.new_empty((0, query.shape[1]))
    grad_key = -grad * share[:, None] * query.to(share.dtype) / (temperature * len(query))
    return (grad * direction).to(query.dtype) if for_query else none, grad_key.to(
        query.dtype
    ) if for_key else none.clone()


def _fake_forward(
    query: Tensor, key: Tensor, queue: Tensor, temperature: float, for_query: bool, backend: str | None
) -> tuple[Tensor, Tensor, Tensor]:
    n, d = query.shape
    shapes = ((), (n,), (n if for_query else 0, d))
    loss, share, direction = (query.new_empty(shape, dtype=_native.accumulator(query.dtype)) for shape in shapes)
    return loss, share, direction


def _fake_backward(
    grad: Tensor,
    query: Tensor,
    share: Tensor,
    direction: Tensor,
    temperature: float,
    for_query: bool,
    for_key: bool,
    backend: str | None,
) -> tuple[Tensor, Tensor]:
    n, d = query.shape
    return query.new_empty((n if for_query else 0, d)), query.new_empty((n if for_key else 0, d))


def _cpu_forward(
    query: Tensor, key: Tensor, queue: Tensor, temperature: float, for_query: bool
) -> tuple[Tensor, Tensor, Tensor]:
    query, key, queue = query.contiguous(), key.contiguous(), queue.contiguous()
    loss, share, direction = _fake_forward(query, key, queue, temperature, for_query, None)
    _native.cpu.queue_info_nce_forward(
        query.data_ptr(),
        key.data_ptr(),
        queue.data_ptr(),
        query.shape[0],
        *queue.shape,
        _native.DTYPES[query.dtype],
        _native.DTYPES[queue.dtype],
        temperature,
        loss.data_ptr(),
        share.data_ptr(),
        direction.data_ptr(),  # 0, for not wanted, where it is empty
        _native.threads(),
    )
    return loss, share, direction


def _cpu_backward(
    grad: Tensor, query: Tensor, share: Tensor, direction: Tensor, temperature: float, for_query: bool, for_key: bool
) -> tuple[Tensor, Tensor]:
    query, share, direction = query.contiguous(), share.contiguous(), direction.contiguous()
    grads = _fake_backward(grad, query, share, direction, temperature, for_query, for_key, None)
    _native.cpu.queue_info_nce_backward(
        grad.data_ptr(),
        query.data_ptr(),
        share.data_ptr(),
        direction.data_ptr(),
        *query.shape,
        _native.DTYPES[query.dtype],
        temperature,
        *(tensor.data_ptr() for tensor in grads),
        _native.threads(),
    )
    return grads


def _example(device: torch.device, n: int) -> Tensor:
    return torch.nn.functional.normalize(torch.randn(n, 4, device=device), dim=1)


def _sizes(query: Tensor, queue: Tensor) -> dict[str, int] | None:
    """What the choice of the reference looks at. The backward, which only scales, is the kernel's in any case."""
    pairs, d = query.shape[0] * queue.shape[0], query.shape[1]
    return {"pairs": pairs, "d": d} if storable(pairs, query.numel()) else None


_forward = Op(
    f"{_OP}(Tensor query, Tensor key, Tensor queue, float temperature, bool for_query, str? backend)"
    " -> (Tensor, Tensor, Tensor)",
    {
        "triton": Implementation(
            triton(_OP, "forward"),
            lambda query, key, queue, *_: triton_rows(query, key) or triton_cuda(query, queue),
            crossover(_OP, lambda query, key, queue, *_: _sizes(query, queue), "cuda"),
        ),
        "cpu": Implementation(
            _cpu_forward,
            lambda query, key, queue, *_: native_cpu(query, key, queue),
            crossover(_OP, lambda query, key, queue, *_: _sizes(query, queue)),
        ),
        "reference": Implementation(_reference_forward, anything),
    },
    _fake_forward,
    lambda device: (_example(device, 3), _example(device, 3), _example(device, 8), 0.5, True),
)
_backward = Op(
    f"{_OP}_backward(Tensor grad, Tensor query, Tensor share, Tensor direction, float temperature, bool for_query,"
    " bool for_key, str? backend) -> (Tensor, Tensor)",
    {
        "triton": Implementation(triton(_OP, "backward"), lambda grad, query, *_: triton_rows(query)),
        "cpu": Implementation(_cpu_backward, lambda grad, query, *_: native_cpu(query)),
        "reference": Implementation(_reference_backward, anything),
    },
    _fake_backward,
    lambda device: (
        torch.ones((), device=device),
        _example(device, 3),
        torch.rand(3, device=device),
        _example(device, 3),
        0.5,
        True,
        True,
    ),
)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    query, *_, ctx.temperature, ctx.for_query, ctx.backend = inputs
    _, share, direction = output
    ctx.save_for_backward(query, share, direction)
    ctx.mark_non_differentiable(share, direction)


def _differentiate(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    for_query, for_key = ctx.for_query and ctx.needs_input_grad[0], ctx.needs_input_grad[1]
    grads = _backward.call(grad, *ctx.saved_tensors, ctx.temperature, for_query, for_key, ctx.backend)
    return grads[0] if for_query else None, grads[1] if for_key else None, None, None, None, None


def _refuse_second_derivative(ctx: Any, *_: Any) -> None:
    raise RuntimeError(f"{_OP}: second derivatives are not supported")


torch.library.register_autograd(f"fastssl::{_OP}", _differentiate, setup_context=_setup_context)
torch.library.register_autograd(f"fastssl::{_OP}_backward", _refuse_second_derivative)
