"""The tokens of MAE's decoder, forward and backward; take_patches measures both ends together."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks import where
from benchmarks.harness import OURS, Case, Work
from fastssl import ops
from fastssl.ops.restore_patches import reference  # type: ignore[attr-defined]

RATIO, LENGTH, WIDTH = 0.75, 196, 512  # the width of MAE's decoder
Function = Callable[..., Tensor]


def ours(x: Tensor, ids_restore: Tensor, mask_token: Tensor, pos_embed: Tensor) -> Tensor:
    return ops.restore_patches(x, ids_restore, mask_token, pos_embed=pos_embed)


def choose(x: Tensor, ids_restore: Tensor, mask_token: Tensor, pos_embed: Tensor) -> Tensor:
    """Without the concatenation: the token written over what an index clamped to the patches gathered."""
    kept = x.shape[1]
    tokens = x.gather(1, ids_restore.clamp(max=kept - 1)[:, :, None].expand(-1, -1, x.shape[2]))
    return torch.where((ids_restore < kept)[:, :, None], tokens, mask_token) + pos_embed


def forward_backward(
    make: Callable[[], Function], batch: int, dtype: torch.dtype, wide: torch.dtype | None = None
) -> Work:
    function = make()
    generator = where.generator()
    shapes = ((batch, round(LENGTH * (1 - RATIO)), WIDTH), (WIDTH,), (LENGTH, WIDTH), (batch, LENGTH, WIDTH))
    x, token, pos, grad = (torch.randn(*shape, generator=generator).to(dtype).to(wide or dtype) for shape in shapes)
    ids = torch.rand(batch, LENGTH, generator=generator).argsort(1)
    leaves = [t.requires_grad_() for t in (x, token, pos)]

    def work() -> tuple[Tensor, ...]:
        for leaf in leaves:
            leaf.grad = None
        out = function(leaves[0], ids, *leaves[1:])
        out.backward(grad)
        return out.detach(), *(leaf.grad for leaf in leaves)

    return work


def exact(batch: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    return forward_backward(lambda: reference, batch, dtype, torch.float64)()


def cases() -> list[Case]:
    rivals: dict[str, Callable[[], Function]] = {
        OURS: lambda: ours,
        "torch eager": lambda: reference,
        "torch.compile": lambda: where.compiled(reference),
        "where": lambda: choose,
        "where, compiled": lambda: where.compiled(choose),
    }
    return [
        Case(
            op="restore_patches",
            shape=f"batch={batch} length={LENGTH} width={WIDTH}",
            dtype=str(dtype).removeprefix("torch."),
            providers={name: functools.partial(forward_backward, make, batch, dtype) for name, make in rivals.items()},
            exact=functools.partial(exact, batch, dtype),
            # x read and the output written; its gradient read, and that of x written
            bytes_moved=2 * batch * WIDTH * dtype.itemsize * (LENGTH + round(LENGTH * (1 - RATIO))),
            peak=batch == 256 and dtype == torch.float32,
        )
        for batch, dtype in where.sizes(
            cpu=((256, torch.float32), (256, torch.bfloat16), (8, torch.float32)),
            gpu=((256, torch.float32), (256, torch.bfloat16)),
            small=((1, torch.bfloat16),),
        )
    ]
