"""The patches that a masked autoencoder's encoder sees, with their position embedding, in one pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastssl.ops import _check, _native, _patches
from fastssl.ops._backend import Implementation, Op, anything, native_cpu

_OP = "take_patches"


def take_patches(x: Tensor, ids: Tensor, *, pos_embed: Tensor | None = None, backend: str | None = None) -> Tensor:
    """``out[b, k] = x[b, ids[b, k]] + pos_embed[ids[b, k]]`` (MAE, arXiv:2111.06377, section 3, "MAE encoder").

    Only the rows taken are read, added to and written. An index may be given more than once; the gradients of the rows
    it gives are summed. Deterministic, and the same bits for any number of threads.

    A class token is kept apart, as MAE does: take from the patches alone, ``pos_embed[1:]`` with them, and concatenate
    the token after. Slices such as ``x[:, 1:]`` are read where they lie, without a copy.

    Args:
        x: (B, L, D) the embedded patches; float32, bfloat16, float16 or float64, in any memory layout.
        ids: (B, K) int64, the patches to take, each in [0, L): ``ids_keep`` of ``random_masking``. The GPU's kernel
            lets nothing wait to see what they are: an index outside makes its row NaN, and gives no gradient.
        pos_embed: (L, D) or (1, L, D) of any of these dtypes, or None.
        backend: the backend that must serve the call; by default our kernel if it can (see ``fastssl.ops.explain``).
    Returns:
        (B, K, D), of the dtype to which torch promotes ``x + pos_embed``. Differentiable in ``x`` and ``pos_embed``.
    Raises:
        TypeError: for another dtype, or something that is no tensor.
        ValueError: for shapes or devices that do not agree, or an index outside [0, L), which is named (but see
            ``ids``).
        RuntimeError: if ``backend`` cannot serve the call.
    """
    _check.float_tensor(_OP, "x", x, "BLD")
    _patches.indices(_OP, "ids", ids, x)
    if pos_embed is not None:
        pos_embed = _patches.position_embedding(_OP, pos_embed, x.shape[1], x)
        x, pos_embed = _patches.promoted(x, pos_embed)
    taken: Tensor = _forward.call(x, ids, pos_embed, backend)
    return taken


def reference(x: Tensor, ids: Tensor, pos_embed: Tensor | None) -> Tensor:
    """As MAE's own code does it: the embedding added to all patches, then a gather by expanded indices."""
    tokens = x if pos_embed is None else x + pos_embed
    return tokens.gather(1, ids[:, :, None].expand(-1, -1, x.shape[2]))


def _reference_forward(x: Tensor, ids: Tensor, pos_embed: Tensor | None) -> Tensor:
    _patches.refuse_outside(_OP, "ids", ids, x.shape[1], _patches.first_outside(ids, x.shape[1]))
    return reference(x, ids, pos_embed)


def _reference_backward(
    grad: Tensor, ids: Tensor, length: int, dtype: torch.dtype, need_x: bool, need_pos: bool
) -> tuple[Tensor, Tensor]:
    _patches.refuse_outside(_OP, "ids", ids, length, _patches.first_outside(ids, length))
    wide = grad.to(_native.accumulator(grad.dtype))
    given = wide.new_zeros(len(grad), length, grad.shape[2])
    given.scatter_add_(1, ids[:, :, None].expand_as(grad), wide)
    none = grad.new_empty(0)
    return (given.to(dtype) if need_x else none.to(dtype)), (given.sum(0).to(grad.dtype) if need_pos else none)


def _fake_forward(x: Tensor, ids: Tensor, pos_embed: Tensor | None, backend: str | None) -> Tensor:
    dtype = x.dtype if pos_embed is None else pos_embed.dtype
    return x.new_empty((*ids.shape, x.shape[2]), dtype=dtype)


def _fake_backward(
    grad: Tensor, ids: Tensor, length: int, dtype: torch.dtype, need_x: bool, need_pos: bool, backend: str | None
) -> tuple[Tensor, Tensor]:
    batch, _, width = grad.shape
    return (
        grad.new_empty((batch, length, width) if need_x else (0,), dtype=dtype),
        grad.new_empty((length, width) if need_pos else (0,)),
    )


def _run_forward(
    kernel: Callable[..., Any], x: Tensor, ids: Tensor, pos_embed: Tensor | None, *last: int
) -> tuple[Tensor, Any]:
    """The output of a native kernel, and what it returns."""
    x, ids = _patches.in_rows(x), ids.contiguous()
    out = _fake_forward(x, ids, pos_embed, None)
    if pos_embed is not None:
        pos_embed = pos_embed.contiguous()
    returned = kernel(
        x.data_ptr(),
        x.stride(0),
        x.stride(1),
        _native.DTYPES[x.dtype],
        *x.shape,
        ids.data_ptr(),
        ids.shape[1],
        0 if pos_embed is None else pos_embed.data_ptr(),
        out.data_ptr(),
        _native.DTYPES[out.dtype],
        *last,
    )
    return out, returned


def _run_backward(
    kernel: Callable[..., Any],
    grad: Tensor,
    ids: Tensor,
    length: int,
    dtype: torch.dtype,
    need_x: bool,
    need_pos: bool,
    *last: int,
) -> tuple[tuple[Tensor, Tensor], Any]:
    grad, ids = _patches.in_rows(grad), ids.contiguous()
    grad_x, grad_pos = _fake_backward(grad, ids, length, dtype, need_x, need_pos, None)
    returned = kernel(
        grad.data_ptr(),
        grad.stride(0),
        grad.stride(1),
        _native.DTYPES[grad.dtype],
        *grad.shape,
        ids.data_ptr(),
        length,
        grad_x.data_ptr() if need_x else 0,
        _native.DTYPES[dtype],
        grad_pos.data_ptr() if need_pos else 0,
        *last,
    )
    return (grad_x, grad_pos), returned


def _cpu_forward(x: Tensor, ids: Tensor, pos_embed: Tensor | None) -> Tensor:
    kernel = _native.cpu.take_patches_forward
    out, outside = _run_forward(kernel, x, ids, pos_embed, _native.threads())
    _patches.refuse_outside(_OP, "ids", ids, x.shape[1], outside)
    return out


def _cpu_backward(
    grad: Tensor, ids: Tensor, length: int, dtype: torch.dtype, need_x: bool, need_pos: bool
) -> tuple[Tensor, Tensor]:
    kernel = _native.cpu.take_patches_backward
    grads, outside = _run_backward(kernel, grad, ids, length, dtype, need_x, need_pos, _native.threads())
    _patches.refuse_outside(_OP, "ids", ids, length, outside)
    return grads


def _cuda_forward(x: Tensor, ids: Tensor, pos_embed: Tensor | None) -> Tensor:
    with torch.cuda.device(x.device):
        return _run_forward(_native.cuda.take_patches_forward, x, ids, pos_embed, _native.stream(x))[0]


def _cuda_backward(
    grad: Tensor, ids: Tensor, length: int, dtype: torch.dtype, need_x: bool, need_pos: bool
) -> tuple[Tensor, Tensor]:
    kernel, wide = _native.cuda.take_patches_backward, _native.accumulator(grad.dtype).itemsize
    with torch.cuda.device(grad.device):
        size = _native.cuda.take_patches_scratch(len(grad), length, grad.shape[2], wide, need_pos)
        scratch = _native.scratch(grad, size)
        last = (scratch.data_ptr(), _native.stream(grad))
        return _run_backward(kernel, grad, ids, length, dtype, need_x, need_pos, *last)[0]


def _example_ids(device: torch.device) -> Tensor:
    return torch.tensor([[3, 0], [1, 4]], device=device)


_forward = Op(
    "take_patches(Tensor x, Tensor ids, Tensor? pos_embed, str? backend) -> Tensor",
    {
        "cuda": Implementation(_cuda_forward, lambda x, ids, pos: _patches.cuda_unsupported(x, ids)),
        "cpu": Implementation(_cpu_forward, lambda x, ids, pos: native_cpu(x, ids)),
        "reference": Implementation(_reference_forward, anything),
    },
    _fake_forward,
    lambda device: (torch.rand(2, 5, 8, device=device), _example_ids(device), torch.rand(5, 8, device=device)),
)
_backward = Op(
    "take_patches_backward(Tensor grad, Tensor ids, SymInt length, ScalarType dtype, bool need_x, bool need_pos, "
    "str? backend) -> (Tensor, Tensor)",
    {
        "cuda": Implementation(_cuda_backward, lambda grad, ids, *_: _patches.cuda_unsupported(grad, ids)),
        "cpu": Implementation(_cpu_backward, lambda grad, ids, *_: native_cpu(grad, ids)),
        "reference": Implementation(_reference_backward, anything),
    },
    _fake_backward,
    lambda device: (torch.rand(2, 2, 8, device=device), _example_ids(device), 5, torch.float32, True, True),
)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, ids, _, ctx.backend = inputs
    ctx.length, ctx.dtype = x.shape[1], x.dtype
    ctx.save_for_backward(ids)


def _differentiate(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    (ids,) = ctx.saved_tensors
    need_x, _, need_pos, _ = ctx.needs_input_grad
    grad_x, grad_pos = _backward.call(grad, ids, ctx.length, ctx.dtype, need_x, need_pos, ctx.backend)
    return grad_x if need_x else None, None, grad_pos if need_pos else None, None


def _refuse_second_derivative(ctx: Any, *_: Any) -> None:
    raise RuntimeError(f"{_OP}: second derivatives are not supported")


torch.library.register_autograd(f"fastssl::{_OP}", _differentiate, setup_context=_setup_context)
torch.library.register_autograd(f"fastssl::{_OP}_backward", _refuse_second_derivative)
