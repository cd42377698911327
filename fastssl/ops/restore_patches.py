"""What a masked autoencoder's decoder sees: encoded patches back in their places, a token elsewhere, in one pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastssl.ops import _check, _native, _patches
from fastssl.ops._backend import Implementation, Op, anything, native_cpu

_OP = "restore_patches"


def restore_patches(
    x: Tensor,
    ids_restore: Tensor,
    mask_token: Tensor,
    *,
    pos_embed: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """``out[b, l] = (x[b, i] if i < K else mask_token) + pos_embed[l]`` with ``i = ids_restore[b, l]``.

    The full set of tokens that enters the decoder (MAE, arXiv:2111.06377, section 3, "MAE decoder"). No tokens are
    repeated, concatenated or gathered in memory; the output is written once. ``ids_restore`` is usually a permutation
    for each sample; where an index is given more than once its gradients are summed. Deterministic, and the same bits
    for any number of threads.

    A class token is kept apart, as MAE does: restore ``x[:, 1:]``, which is read where it lies, with ``pos_embed[1:]``,
    and concatenate ``x[:, :1] + pos_embed[:1]`` before it.

    Args:
        x: (B, K, D) the encoded patches; float32, bfloat16, float16 or float64, in any memory layout.
        ids_restore: (B, L) int64, L >= K, each in [0, L): of ``random_masking``. The GPU's kernel lets nothing
            wait to see what they are: an index outside makes its row NaN, and gives no gradient but ``pos_embed``'s.
        mask_token: (D,), or any shape of D elements such as MAE's (1, 1, D); any of these dtypes.
        pos_embed: (L, D) or (1, L, D) of any of these dtypes, or None.
        backend: the backend that must serve the call; by default our kernel if it can (see ``fastssl.ops.explain``).
    Returns:
        (B, L, D), of the dtype to which torch promotes ``x``, ``mask_token`` and ``pos_embed`` together. Differentiable
        in all three.
    Raises:
        TypeError: for another dtype, or something that is no tensor.
        ValueError: for shapes or devices that do not agree, or an index outside [0, L), which is named (but see
            ``ids_restore``).
        RuntimeError: if ``backend`` cannot serve the call.
    """
    _check.float_tensor(_OP, "x", x, "BKD")
    _patches.indices(_OP, "ids_restore", ids_restore, x)
    length = ids_restore.shape[1]
    if x.shape[1] > length:
        raise ValueError(
            f"{_OP}: x (B, K, D) may hold at most the L = {length} patches of ids_restore; got {x.shape[1]}"
        )
    token = mask_token.flatten() if isinstance(mask_token, Tensor) else mask_token
    token = _check.float_tensor(_OP, "mask_token", token, "D")
    if token.shape[0] != x.shape[2]:
        raise ValueError(f"{_OP}: mask_token must have D = {x.shape[2]} elements; got {_check.shape(mask_token)}")
    _check.one_device(_OP, ("x", x), ("mask_token", token))
    pos = None if pos_embed is None else _patches.position_embedding(_OP, pos_embed, length, x)
    x, token, pos = _patches.promoted(x, token, pos)
    restored: Tensor = _forward.call(x, ids_restore, token, pos, backend)
    return restored


def reference(x: Tensor, ids_restore: Tensor, mask_token: Tensor, pos_embed: Tensor | None) -> Tensor:
    """As MAE's own code does it: tokens appended, then a gather by expanded indices."""
    batch, kept, width = x.shape
    tokens = torch.cat([x, mask_token.expand(batch, ids_restore.shape[1] - kept, width)], dim=1)
    tokens = tokens.gather(1, ids_restore[:, :, None].expand(-1, -1, width))
    return tokens if pos_embed is None else tokens + pos_embed


def _reference_forward(x: Tensor, ids: Tensor, mask_token: Tensor, pos_embed: Tensor | None) -> Tensor:
    _patches.refuse_outside(_OP, "ids_restore", ids, ids.shape[1], _patches.first_outside(ids, ids.shape[1]))
    return reference(x, ids, mask_token, pos_embed)


def _reference_backward(
    grad: Tensor, ids: Tensor, kept: int, dtype: torch.dtype, need_x: bool, need_token: bool, need_pos: bool
) -> tuple[Tensor, Tensor, Tensor]:
    batch, length, width = grad.shape
    _patches.refuse_outside(_OP, "ids_restore", ids, length, _patches.first_outside(ids, length))
    wide = grad.to(_native.accumulator(grad.dtype))
    tokens = wide.new_zeros(batch, length, width).scatter_add_(1, ids[:, :, None].expand_as(grad), wide)
    none = grad.new_empty(0)
    return (
        tokens[:, :kept].to(dtype).contiguous() if need_x else none.to(dtype),
        tokens[:, kept:].sum((0, 1)).to(grad.dtype) if need_token else none,
        wide.sum(0).to(grad.dtype) if need_pos else none.clone(),
    )


def _fake_forward(x: Tensor, ids: Tensor, mask_token: Tensor, pos_embed: Tensor | None, backend: str | None) -> Tensor:
    return x.new_empty((*ids.shape, x.shape[2]), dtype=mask_token.dtype)


def _fake_backward(
    grad: Tensor,
    ids: Tensor,
    kept: int,
    dtype: torch.dtype,
    need_x: bool,
    need_token: bool,
    need_pos: bool,
    backend: str | None,
) -> tuple[Tensor, Tensor, Tensor]:
    batch, length, width = grad.shape
    return (
        grad.new_empty((batch, kept, width) if need_x else (0,), dtype=dtype),
        grad.new_empty((width,) if need_token else (0,)),
        grad.new_empty((length, width) if need_pos else (0,)),
    )


def _run_forward(
    kernel: Callable[..., Any], x: Tensor, ids: Tensor, mask_token: Tensor, pos_embed: Tensor | None, last: int
) -> tuple[Tensor, Any]:
    """The output of a native kernel, and what it returns."""
    x, ids, mask_token = _patches.in_rows(x), ids.contiguous(), mask_token.contiguous()
    out = _fake_forward(x, ids, mask_token, pos_embed, None)
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
        mask_token.data_ptr(),
        0 if pos_embed is None else pos_embed.data_ptr(),
        out.data_ptr(),
        _native.DTYPES[out.dtype],
        last,
    )
    return out, returned


def _run_backward(
    kernel: Callable[..., Any],
    grad: Tensor,
    ids: Tensor,
    kept: int,
    dtype: torch.dtype,
    need: tuple[bool, bool, bool],
    *last: int,
) -> tuple[tuple[Tensor, Tensor, Tensor], Any]:
    grad, ids = _patches.in_rows(grad), ids.contiguous()
    grads = _fake_backward(grad, ids, kept, dtype, *need, None)
    x, token, pos = (out.data_ptr() if needed else 0 for out, needed in zip(grads, need, strict=True))
    returned = kernel(
        grad.data_ptr(),
        grad.stride(0),
        grad.stride(1),
        _native.DTYPES[grad.dtype],
        *grad.shape,
        ids.data_ptr(),
        kept,
        x,
        _native.DTYPES[dtype],
        token,
        pos,
        *last,
    )
    return grads, returned


def _cpu_forward(x: Tensor, ids: Tensor, mask_token: Tensor, pos_embed: Tensor | None) -> Tensor:
    kernel = _native.cpu.restore_patches_forward
    out, outside = _run_forward(kernel, x, ids, mask_token, pos_embed, _native.threads())
    _patches.refuse_outside(_OP, "ids_restore", ids, ids.shape[1], outside)
    return out


def _cpu_backward(
    grad: Tensor, ids: Tensor, kept: int, dtype: torch.dtype, need_x: bool, need_token: bool, need_pos: bool
) -> tuple[Tensor, Tensor, Tensor]:
    kernel, need = _native.cpu.restore_patches_backward, (need_x, need_token, need_pos)
    grads, outside = _run_backward(kernel, grad, ids, kept, dtype, need, _native.threads())
    _patches.refuse_outside(_OP, "ids_restore", ids, ids.shape[1], outside)
    return grads


def _cuda_forward(x: Tensor, ids: Tensor, mask_token: Tensor, pos_embed: Tensor | None) -> Tensor:
    kernel = _native.cuda.restore_patches_forward
    with torch.cuda.device(x.device):
        return _run_forward(kernel, x, ids, mask_token, pos_embed, _native.stream(x))[0]


def _cuda_backward(
    grad: Tensor, ids: Tensor, kept: int, dtype: torch.dtype, need_x: bool, need_token: bool, need_pos: bool
) -> tuple[Tensor, Tensor, Tensor]:
    kernel, need = _native.cuda.restore_patches_backward, (need_x, need_token, need_pos)
    (batch, length, width), wide = grad.shape, _native.accumulator(grad.dtype).itemsize
    with torch.cuda.device(grad.device):
        size = _native.cuda.restore_patches_scratch(batch, length, kept, width, wide, need_token, need_pos)
        scratch = _native.scratch(grad, size)
        last = (scratch.data_ptr(), _native.stream(grad))
        return _run_backward(kernel, grad, ids, kept, dtype, need, *last)[0]


def _example_ids(device: torch.device) -> Tensor:
    return torch.tensor([[1, 4, 0, 2, 3], [3, 0, 2, 1, 4]], device=device)


_forward = Op(
    "restore_patches(Tensor x, Tensor ids_restore, Tensor mask_token, Tensor? pos_embed, str? backend) -> Tensor",
    {
        "cuda": Implementation(_cuda_forward, lambda x, ids, token, pos: _patches.cuda_unsupported(x, ids, token)),
        "cpu": Implementation(_cpu_forward, lambda x, ids, token, pos: native_cpu(x, ids, token)),
        "reference": Implementation(_reference_forward, anything),
    },
    _fake_forward,
    lambda device: (
        torch.rand(2, 2, 8, device=device),
        _example_ids(device),
        torch.rand(8, device=device),
        torch.rand(5, 8, device=device),
    ),
)
_backward = Op(
    "restore_patches_backward(Tensor grad, Tensor ids_restore, SymInt kept, ScalarType dtype, bool need_x, "
    "bool need_token, bool need_pos, str? backend) -> (Tensor, Tensor, Tensor)",
    {
        "cuda": Implementation(_cuda_backward, lambda grad, ids, *_: _patches.cuda_unsupported(grad, ids)),
        "cpu": Implementation(_cpu_backward, lambda grad, ids, *_: native_cpu(grad, ids)),
        "reference": Implementation(_reference_backward, anything),
    },
    _fake_backward,
    lambda device: (torch.rand(2, 5, 8, device=device), _example_ids(device), 2, torch.float32, True, True, True),
)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, ids, _, _, ctx.backend = inputs
    ctx.kept, ctx.dtype = x.shape[1], x.dtype
    ctx.save_for_backward(ids)


def _differentiate(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    (ids,) = ctx.saved_tensors
    need_x, _, need_token, need_pos, _ = ctx.needs_input_grad
    grads = _backward.call(grad, ids, ctx.kept, ctx.dtype, need_x, need_token, need_pos, ctx.backend)
    x, token, pos = (out if need else None for out, need in zip(grads, (need_x, need_token, need_pos), strict=True))
    return x, None, token, pos, None


def _refuse_second_derivative(ctx: Any, *_: Any) -> None:
    raise RuntimeError(f"{_OP}: second derivatives are not supported")


torch.library.register_autograd(f"fastssl::{_OP}", _differentiate, setup_context=_setup_context)
torch.library.register_autograd(f"fastssl::{_OP}_backward", _refuse_second_derivative)
