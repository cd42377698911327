"""The patches of MAE's encoder, forward and backward; and all of MAE's shuffling, with restore_patches after it."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks import where
from benchmarks.harness import OURS, Case, Work
from fastssl import ops
from fastssl.ops.restore_patches import reference as restore_reference  # type: ignore[attr-defined]
from fastssl.ops.take_patches import reference  # type: ignore[attr-defined]

RATIO, LENGTH, WIDTH = 0.75, 196, 768
Function = Callable[..., Tensor]


def take_before_adding(x: Tensor, ids: Tensor, pos_embed: Tensor) -> Tensor:
    """The reference's sum over the patches taken alone: the embedding is gathered too."""
    rows = ids[:, :, None].expand(-1, -1, x.shape[2])
    return x.gather(1, rows) + pos_embed.expand_as(x).gather(1, rows)


def index_before_adding(x: Tensor, ids: Tensor, pos_embed: Tensor) -> Tensor:
    """The same by advanced indexing, which needs no expanded indices."""
    return x[torch.arange(len(x), device=x.device)[:, None], ids] + pos_embed[ids]


def leaves(batch: int, dtype: torch.dtype) -> tuple[list[Tensor], Tensor, Tensor]:
    """x, the two position embeddings, the mask token; the order of the patches; the gradient of all tokens."""
    generator = where.generator()
    shapes = ((batch, LENGTH, WIDTH), (LENGTH, WIDTH), (LENGTH, WIDTH), (WIDTH,))
    tensors = [torch.randn(*shape, generator=generator).to(dtype).requires_grad_() for shape in shapes]
    order = torch.rand(batch, LENGTH, generator=generator).argsort(1)
    return tensors, order, torch.randn(batch, LENGTH, WIDTH, generator=generator).to(dtype)


def take_work(take: Function, batch: int, dtype: torch.dtype, wide: torch.dtype | None = None) -> Work:
    (x, pos, _, _), order, grad = leaves(batch, dtype)
    kept = round(LENGTH * (1 - RATIO))
    ids, grad = order[:, :kept].contiguous(), grad[:, :kept].contiguous().to(wide or dtype)
    x, pos = (t.detach().to(wide or dtype).requires_grad_() for t in (x, pos))

    def work() -> tuple[Tensor, ...]:
        x.grad = pos.grad = None
        out = take(x, ids, pos)
        out.backward(grad)
        return out.detach(), x.grad, pos.grad

    return work


def both_work(
    take: Function, restore: Function, batch: int, dtype: torch.dtype, wide: torch.dtype | None = None
) -> Work:
    tensors, order, grad = leaves(batch, dtype)
    ids, ids_restore = order[:, : round(LENGTH * (1 - RATIO))].contiguous(), order.argsort(1)
    tensors, grad = [t.detach().to(wide or dtype).requires_grad_() for t in tensors], grad.to(wide or dtype)
    x, pos, decoder_pos, token = tensors

    def work() -> tuple[Tensor, ...]:
        for tensor in tensors:
            tensor.grad = None
        out = restore(take(x, ids, pos), ids_restore, token, decoder_pos)
        out.backward(grad)
        return out.detach(), *(tensor.grad for tensor in tensors)

    return work


def ours_take(x: Tensor, ids: Tensor, pos_embed: Tensor) -> Tensor:
    return ops.take_patches(x, ids, pos_embed=pos_embed)


def ours_restore(x: Tensor, ids_restore: Tensor, mask_token: Tensor, pos_embed: Tensor) -> Tensor:
    return ops.restore_patches(x, ids_restore, mask_token, pos_embed=pos_embed)


def take_rivals() -> dict[str, Callable[[], Function]]:
    return {
        OURS: lambda: ours_take,
        "torch eager": lambda: reference,
        "torch.compile": lambda: where.compiled(reference),
        "gather before adding": lambda: take_before_adding,
        "gather before adding, compiled": lambda: where.compiled(take_before_adding),
        "index before adding": lambda: index_before_adding,
    }


def both_rivals() -> dict[str, Callable[[], tuple[Function, Function]]]:
    return {
        OURS: lambda: (ours_take, ours_restore),
        "torch eager": lambda: (reference, restore_reference),
        "torch.compile": lambda: (where.compiled(reference), where.compiled(restore_reference)),
        "gather before adding": lambda: (take_before_adding, restore_reference),
        "gather before adding, compiled": lambda: (
            where.compiled(take_before_adding),
            where.compiled(restore_reference),
        ),
    }


def take_alone(make: Callable[[], Function], batch: int, dtype: torch.dtype) -> Work:
    return take_work(make(), batch, dtype)


def both(make: Callable[[], tuple[Function, Function]], batch: int, dtype: torch.dtype) -> Work:
    return both_work(*make(), batch, dtype)


def exact(pair: bool, batch: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    if pair:
        return both_work(reference, restore_reference, batch, dtype, torch.float64)()
    return take_work(reference, batch, dtype, torch.float64)()


def cases() -> list[Case]:
    made = []
    for pair, batch, dtype in where.sizes(
        cpu=(
            (True, 256, torch.float32),
            (True, 256, torch.bfloat16),
            (False, 256, torch.float32),
            (False, 8, torch.float32),
        ),
        gpu=((True, 256, torch.float32), (True, 256, torch.bfloat16), (False, 256, torch.bfloat16)),
        small=((True, 1, torch.bfloat16),),
    ):
        taken = batch * round(LENGTH * (1 - RATIO)) * WIDTH * dtype.itemsize
        full = batch * LENGTH * WIDTH * dtype.itemsize
        rivals = {
            name: functools.partial(both if pair else take_alone, make, batch, dtype)
            for name, make in (both_rivals() if pair else take_rivals()).items()
        }
        made.append(
            Case(
                op="take_patches",
                shape=f"{'then restored, ' if pair else ''}batch={batch} length={LENGTH} width={WIDTH}",
                dtype=str(dtype).removeprefix("torch."),
                providers=rivals,
                exact=functools.partial(exact, pair, batch, dtype),
                # the patches taken are read and written; their gradient is read, that of x written; as many again, and
                # the taken ones read and their gradient written, for what is restored
                bytes_moved=5 * taken + 3 * full if pair else 3 * taken + full,
                peak=pair and dtype == torch.float32,
            )
        )
    return made
