"""What take_patches and restore_patches share: the checks of their arguments, and the type they add in."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastssl.ops import _check
from fastssl.ops._backend import native_cuda


def indices(op: str, name: str, ids: object, x: Tensor) -> Tensor:
    """``ids`` must be int64, of two dimensions, and as many samples as ``x`` on its device."""
    ids = _check.tensor(op, name, ids)
    if ids.dtype != torch.int64:
        raise TypeError(f"{op}: {name} must be int64; got {ids.dtype}")
    if ids.dim() != 2 or ids.shape[0] != x.shape[0]:
        raise ValueError(
            f"{op}: {name} must have two dimensions, the first being the samples of x; "
            f"got {_check.shape(ids)} for x {_check.shape(x)}"
        )
    _check.one_device(op, ("x", x), (name, ids))
    return ids


def position_embedding(op: str, pos_embed: object, length: int, x: Tensor) -> Tensor:
    """``pos_embed`` must be (length, D) or (1, length, D), on the device of ``x``; returned with two dimensions."""
    batched = isinstance(pos_embed, Tensor) and pos_embed.dim() == 3 and pos_embed.shape[0] == 1
    pos = _check.float_tensor(op, "pos_embed", pos_embed[0] if batched else pos_embed, "LD")  # type: ignore[index]
    if pos.shape != (length, x.shape[2]):
        raise ValueError(
            f"{op}: pos_embed must be (L, D) or (1, L, D) with L = {length} and D = {x.shape[2]}; "
            f"got {_check.shape(pos_embed)}"  # type: ignore[arg-type]
        )
    _check.one_device(op, ("x", x), ("pos_embed", pos))
    return pos


def promoted(x: Tensor, *added: Tensor | None) -> tuple[Any, ...]:
    """``x`` and what is added to it, the latter in the dtype of the sum as torch promotes it.

    ``x``, which is large, keeps its own dtype where the kernels read it in that of the sum.
    """
    dtype = x.dtype
    for tensor in added:
        dtype = dtype if tensor is None else torch.promote_types(dtype, tensor.dtype)
    x = x.double() if dtype == torch.float64 else x
    return (x, *(tensor if tensor is None else tensor.to(dtype) for tensor in added))


def in_rows(x: Tensor) -> Tensor:
    """``x`` (B, L, D), copied only if the elements of a row are not next to each other: the kernels take any strides
    of samples and rows, so a slice that leaves a class token out is not copied."""
    return x if x.stride(2) == 1 or x.shape[2] == 1 else x.contiguous()


_CUDA_ROWS = 2**31 - 1  # of a sample, which the inverse of its indices counts in 32 bits


def cuda_unsupported(x: Tensor, ids: Tensor, *others: Tensor) -> str | None:
    """Why the CUDA kernels cannot take these rows and indices."""
    if ids.shape[1] > _CUDA_ROWS:
        return f"it takes at most 2^31 - 1 indices a sample, got {ids.shape[1]}"
    return native_cuda(x, ids, *others, blocks=len(ids))


def refuse_outside(op: str, name: str, ids: Tensor, limit: int, position: int) -> None:
    """Raises where a kernel found an index outside [0, limit) at ``position``; -1 is none."""
    if position >= 0:
        sample, k = divmod(position, ids.shape[1])
        raise ValueError(f"{op}: {name} must be in [0, {limit}); got {int(ids[sample, k])} at ({sample}, {k})")


def first_outside(ids: Tensor, limit: int) -> int:
    """The position of the first index outside [0, limit), or -1: the check of the references."""
    outside = ((ids < 0) | (ids >= limit)).flatten()
    return int(outside.byte().argmax()) if bool(outside.any()) else -1
