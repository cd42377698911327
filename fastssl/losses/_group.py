"""What losses need of the other processes of a group: their rows, in the order of the ranks, and sums over all.

Each process computes the mean loss of its own rows against the candidates of all. The mean of these losses over the
processes is the loss of one process with the whole batch, and so is the mean of the parameters' gradients, which
DistributedDataParallel and FSDP take: the gradient of a row is summed over all the processes that used it.
"""

from __future__ import annotations

import hashlib
import numbers
from collections.abc import Callable, Iterable
from typing import Any, TypeAlias, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
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
    if known(owner, group) is None:
        return None
    if not (dist.is_available() and dist.is_initialized()):
        raise RuntimeError(
            f"{owner}: a group was given, and torch.distributed is not initialised: call init_process_group first"
        )
    found = dist.group.WORLD if isinstance(group, str) else group
    if dist.get_rank(found) < 0:
        raise ValueError(f"{owner}: this process is not of the group that was given")
    return found


def known(owner: str, group: Group) -> Group:
    """``group``, if it is something that can be one.

    Raises:
        ValueError: if not.
    """
    if group is None or _is_group(group) or (isinstance(group, str) and group == "world"):
        return group
    raise ValueError(f'{owner}: group must be a process group, "world" or None; got {group!r}')


class _Kept:
    """A process group as a part of a module: a copy of the module has the same one, and no file can hold it."""

    def __init__(self, group: dist.ProcessGroup) -> None:
        self.group = group

    def __deepcopy__(self, _: object) -> _Kept:
        return self

    def __reduce__(self) -> str:
        raise TypeError(
            'a loss over a process group cannot be pickled: save its state_dict(), or give it group="world"'
        )


class OverGroup(nn.Module):
    """A loss that may be over the processes of ``group``."""

    _group: _Kept | str | None = None

    @property
    def group(self) -> Group:
        """None, "world" or the process group."""
        return self._group.group if isinstance(self._group, _Kept) else self._group

    @group.setter
    def group(self, group: Group) -> None:
        found = known(type(self).__name__, group)
        self._group = found if found is None or isinstance(found, str) else _Kept(found)

    def told_group(self) -> str:
        """What the module's repr says of its group: nothing without one."""
        group = self.group
        if group is None or isinstance(group, str):
            return "" if group is None else f", group={group!r}"
        count = dist.get_world_size(group)
        return f", group of {count} processes" if count > 0 else ", group that this process is not of"


def _is_group(value: object) -> bool:
    """Whether it is a process group, or what ``new_group`` gives to those who are not of it."""
    return dist.is_available() and (isinstance(value, dist.ProcessGroup) or value is dist.GroupMember.NON_GROUP_MEMBER)


def size(group: dist.ProcessGroup | None) -> int:
    """Its processes; without a group there is this one."""
    return 1 if group is None else dist.get_world_size(group)


def agreed(owner: str, group: dist.ProcessGroup | None, check: Callable[[], Checked], **settings: object) -> Checked:
    """What ``check`` returns of this process's input, once all processes have found theirs good, and alike.

    One that raised by itself, or gathered other shapes, would leave the others waiting for ever. ``settings`` are what
    else the result depends on, or which collectives follow: values, or functions that are called once the input is
    good. Costs one all-reduce of two numbers, on the CPU where the group can: "cpu:gloo,cuda:nccl" as the backend of
    init_process_group spares a GPU the wait.

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
    """Of a tensor no value: reading it would wait for the device."""

    def one(value: object) -> str:
        if callable(value):
            value = value()
        if isinstance(value, Tensor):
            gradient = " with gradient" if value.requires_grad and torch.is_grad_enabled() else ""
            return f"{_check.shape(value)} {str(value.dtype).removeprefix('torch.')}{gradient}"
        if isinstance(value, numbers.Real) and not isinstance(value, bool):
            value = float(value)  # 1 and 1.0 are the same setting
        return repr(value)

    return ", ".join([*map(one, tensors), *(f"{name}={one(value)}" for name, value in settings.items())])


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


class Sharing(nn.Module):
    """A module with buffers that each process drew at random or loaded by itself, and that must be alike.

    ``is_shared`` is to be among the settings that processes agree on: one that shares waits for all.
    """

    is_shared = False

    def share_once(self, buffers: Iterable[Tensor], group: dist.ProcessGroup | None) -> None:
        """At the first call over a group, and after a state dict, they become those of the group's first process."""
        if group is not None and not self.is_shared:
            copy_from_first(buffers, group)
            self.is_shared = True

    def _load_from_state_dict(self, *args: Any) -> None:
        super()._load_from_state_dict(*args)
        self.is_shared = False


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
