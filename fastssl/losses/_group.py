"""What losses need of the other processes of a group: their rows, in the order of the ranks, and sums over all.

Each process computes the mean loss of its own rows against the candidates of all. The mean of these losses over the
processes is the loss of one process with the whole batch, and so is the mean of the parameters' gradients, which
DistributedDataParallel and FSDP take: the gradient of a row is summed over all the processes that used it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from typing import Any, Protocol, TypeAlias, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from fastssl.ops import _check

Group: TypeAlias = "dist.ProcessGroup | str | None"
Checked = TypeVar("Checked", bound="tuple[Tensor, ...]")
Account: TypeAlias = tuple[str, str]  # of one process: the type of its error, or "", and what it has to say


def resolved(owner: str, group: Group) -> dist.ProcessGroup | None:
    """The process group that ``group`` means now: none, the one of all processes for "world", or itself.

    Raises:
        RuntimeError: if a group is asked for, and torch.distributed is not initialised.
        ValueError: for another word or thing, or a group that this process is not of.
    """
    if group is None:
        return None
    if not (isinstance(group, str) and group == "world") and not _is_group(group):
        raise ValueError(f'{owner}: group must be a process group, "world" or None; got {group!r}')
    if not (dist.is_available() and dist.is_initialized()):
        raise RuntimeError(
            f"{owner}: a group was given, and torch.distributed is not initialised: call init_process_group first"
        )
    found = dist.group.WORLD if isinstance(group, str) else group
    if dist.get_rank(found) < 0:
        raise ValueError(f"{owner}: this process is not of the group that was given")
    return found


def told(group: Group) -> str:
    """What a module's repr says of its group: nothing without one."""
    if group is None:
        return ""
    return f", group={group!r}" if isinstance(group, str) else f", group of {dist.get_world_size(group)} processes"


def _is_group(value: object) -> bool:
    """Whether it is a process group, or what ``new_group`` gives to those who are not of it."""
    return dist.is_available() and (isinstance(value, dist.ProcessGroup) or value is dist.GroupMember.NON_GROUP_MEMBER)


def size(group: dist.ProcessGroup | None) -> int:
    """Its processes; without a group there is this one."""
    return 1 if group is None else dist.get_world_size(group)


def agreed(owner: str, group: dist.ProcessGroup | None, check: Callable[[], Checked], **settings: object) -> Checked:
    """What ``check`` returns of this process's input, once all processes have found theirs good, and alike.

    One that raised by itself, or gathered other shapes, would leave the others waiting for ever. ``settings`` are what
    else the result depends on, or which collectives follow. Costs one all-reduce of two numbers.

    Raises:
        TypeError, ValueError: on every process, naming the ranks and what they had, if the input of one is bad, or if
            shapes, dtypes, settings, or which of the inputs get a gradient, differ.
    """
    if group is None:
        return check()
    cause: Exception | None = None
    try:
        checked = check()
        mine = ("", _described(checked, settings))
    except Exception as error:  # whatever it is: the others wait
        cause, mine = error, (type(error).__name__, str(error))
    if _all_say(mine, group) and cause is None:
        return checked
    accounts: list[Account] = [mine] * size(group)
    dist.all_gather_object(accounts, mine, group)
    raise _complaint(owner, accounts) from cause


def _described(tensors: tuple[Tensor, ...], settings: dict[str, object]) -> str:
    """Of a setting that is learnt no value: reading it would wait for the device."""

    def one(x: Tensor) -> str:
        gradient = " with gradient" if x.requires_grad and torch.is_grad_enabled() else ""
        return f"{_check.shape(x)} {str(x.dtype).removeprefix('torch.')}{gradient}"

    told = {name: one(value) if isinstance(value, Tensor) else repr(value) for name, value in settings.items()}
    return ", ".join([*map(one, tensors), *(f"{name}={value}" for name, value in told.items())])


def _all_say(mine: Account, group: dist.ProcessGroup) -> bool:
    """Whether every process has the same account: then the largest of their hashes is the smallest."""
    number = int.from_bytes(hashlib.blake2b(repr(mine).encode(), digest_size=7).digest(), "big")
    ends = torch.tensor([number, -number], device=_device(group))
    dist.all_reduce(ends, dist.ReduceOp.MAX, group)
    largest, minus_smallest = ends.tolist()
    return bool(largest == -minus_smallest)


def _device(group: dist.ProcessGroup) -> str:
    """Where the group's numbers may lie: on the CPU if it can, for a GPU would be waited for."""
    devices = [pair.partition(":")[0] for pair in dist.get_backend_config(group).split(",")]
    return "cpu" if "cpu" in devices else devices[0]


def _complaint(owner: str, accounts: list[Account]) -> Exception:
    """The error of all processes, for the accounts of each in the order of the ranks."""
    ranks: dict[Account, list[int]] = {}
    for rank, account in enumerate(accounts):
        ranks.setdefault(account, []).append(rank)
    bad = [account for account in ranks if account[0]]
    if bad:
        kind = TypeError if bad[0][0] == "TypeError" else ValueError
        return kind("; ".join(f"{account[1]} (on {_named(ranks[account])})" for account in bad))
    had = "; ".join(f"{account[1]} on {_named(found)}" for account, found in ranks.items())
    return ValueError(
        f"{owner}: every process must have as many samples, of one kind, and the same settings; got {had} "
        "(of batches that differ in size, leave out the last: drop_last=True)"
    )


def _named(ranks: list[int]) -> str:
    first = ", ".join(map(str, ranks[:8]))
    more = f" and {len(ranks) - 8} more" if len(ranks) > 8 else ""
    return f"rank{'s' if len(ranks) > 1 else ''} {first}{more}"


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


def with_places(rows: Tensor, group: dist.ProcessGroup | None) -> tuple[Tensor, Tensor]:
    """The rows of all processes, and where this one's N stand among them: (N) int64."""
    if group is None:
        return rows, torch.arange(len(rows), device=rows.device)
    return gathered(rows, group), place(rows, group)


@torch.no_grad()
def copy_from_first(buffers: Iterable[Tensor], group: dist.ProcessGroup) -> None:
    """The buffers of the group's first process, in place of this one's."""
    for buffer in buffers:
        whole = buffer.contiguous()  # as a broadcast needs it
        dist.broadcast(whole, dist.get_global_rank(group, 0), group)
        buffer.copy_(whole)


class Sharing(Protocol):
    """What has buffers that each process drew at random, and that must be alike."""

    _is_shared: bool


def share_once(owner: Sharing, buffers: Iterable[Tensor], group: dist.ProcessGroup | None) -> None:
    """At the owner's first call over a group, its buffers become those of the group's first process."""
    if group is not None and not owner._is_shared:
        copy_from_first(buffers, group)
        owner._is_shared = True


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
        return _own_part_of_total(grad, ctx.group), None


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


def _own_part_of_total(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    """Of the sum over the processes, as ``_total``, the rows that came from this one."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32)).contiguous()
    mine = wide.new_empty((len(wide) // size(group), *wide.shape[1:]))
    # the newer name of the same; the older one warns where both are
    reduce_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor
    reduce_scatter(mine, wide, group=group)
    return mine.to(x.dtype)
