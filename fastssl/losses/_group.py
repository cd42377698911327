"""What losses need of the other processes of a group: their rows, in the order of the ranks, and sums over all.

Each process computes the mean loss of its own rows against the candidates of all. The mean of these losses over the
processes is the loss of one process with the whole batch, and so is the mean of the parameters' gradients, which
DistributedDataParallel and FSDP take: the gradient of a row is summed over all the processes that used it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeAlias

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

Group: TypeAlias = "dist.ProcessGroup | str | None"


def resolved(owner: str, group: Group) -> dist.ProcessGroup | None:
    """The process group that ``group`` means now: none, the one of all processes for "world", or itself.

    Raises:
        RuntimeError: if a group is asked for, and torch.distributed is not initialised.
        ValueError: for another word, or a group that this process is not of.
    """
    if group is None:
        return None
    if isinstance(group, str) and group != "world":
        raise ValueError(f'{owner}: group must be a process group, "world" or None; got {group!r}')
    if not (dist.is_available() and dist.is_initialized()):
        raise RuntimeError(
            f"{owner}: a group was given, and torch.distributed is not initialised: call init_process_group first"
        )
    found = dist.group.WORLD if isinstance(group, str) else group
    if dist.get_rank(found) < 0:
        raise ValueError(f"{owner}: this process is not of the group that was given")
    return found


def same_count(owner: str, rows: Tensor, group: dist.ProcessGroup) -> None:
    """Every process must have as many rows: otherwise a mean over processes is no mean over rows, and gathering hangs.

    Raises:
        ValueError: on every process, with the counts of all.
    """
    mine = torch.tensor([len(rows)], device=rows.device)
    counts = [torch.empty_like(mine) for _ in range(dist.get_world_size(group))]
    dist.all_gather(counts, mine, group)
    found = [int(count) for count in counts]
    if len(set(found)) > 1:
        raise ValueError(
            f"{owner}: every process must have as many samples; got {', '.join(map(str, found))} in the order of the "
            "ranks: leave out the last, smaller batch (drop_last=True)"
        )


def gathered(rows: Tensor, group: dist.ProcessGroup) -> Tensor:
    """(N, ...) of each process as (world N, ...), in the order of the ranks; gradients flow to where rows came from."""
    found: Tensor = _Gathered.apply(rows, group)  # type: ignore[no-untyped-call]
    return found


def summed(x: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """The sum of every process's ``x``; gradients flow to all."""
    if group is None:
        return x
    found: Tensor = _Summed.apply(x, group)  # type: ignore[no-untyped-call]
    return found


def place(rows: Tensor, group: dist.ProcessGroup) -> Tensor:
    """Where this process's N rows stand among the gathered ones: (N) int64."""
    return torch.arange(len(rows), device=rows.device) + dist.get_rank(group) * len(rows)


@torch.no_grad()
def copy_from_first(buffers: Iterable[Tensor], group: dist.ProcessGroup) -> None:
    """The buffers of the group's first process, in place of this one's."""
    for buffer in buffers:
        whole = buffer.contiguous()  # as a broadcast needs it
        dist.broadcast(whole, dist.get_global_rank(group, 0), group)
        buffer.copy_(whole)


class _Gathered(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        parts = [
            torch.empty_like(rows, memory_format=torch.contiguous_format) for _ in range(dist.get_world_size(group))
        ]
        dist.all_gather(parts, rows.contiguous(), group)
        return torch.cat(parts)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        total = _total(grad, ctx.group)
        return total.chunk(dist.get_world_size(ctx.group))[dist.get_rank(ctx.group)], None


class _Summed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        return _total(x, group)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _total(grad, ctx.group), None


def _total(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    """The sum over the processes, added up in float32 at least."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32), copy=True).contiguous()
    dist.all_reduce(wide, group=group)
    return wide.to(x.dtype)
