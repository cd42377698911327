"""Sums over every process's keys, which travel round the group: none holds them all.

Each process holds a block of N keys at a time and passes it on, so memory grows with N D and not with the number of
processes. The backward sends the blocks round once more, each with the gradient that it has gathered so far.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from fastssl.losses import _rows

# of (queries, a block of keys, whether these are this process's own): a number, or one for each query
Term = Callable[[Tensor, Tensor, bool], Tensor]


def lse(queries: Tensor, keys: Tensor, exclude: Tensor | None, group: dist.ProcessGroup) -> Tensor:
    """(N) log-sum-exps of each query's products with the keys of all processes.

    ``exclude`` (N) are columns of this process's own keys to leave out. Every process must call it with as many keys.
    Gradients flow to the queries, and to the keys of every process.
    """

    def term(queries: Tensor, block: Tensor, own: bool) -> Tensor:
        return _rows.log_sum_exp(queries, block, exclude if own else None)

    return _over(queries, keys, term, True, group)


def total(queries: Tensor, keys: Tensor, term: Term, group: dist.ProcessGroup) -> Tensor:
    """The sum of ``term`` over the blocks of all processes; gradients as of ``lse``."""
    return _over(queries, keys, term, False, group)


def _over(queries: Tensor, keys: Tensor, term: Term, in_logarithms: bool, group: dist.ProcessGroup) -> Tensor:
    found: Tensor = _Ring.apply(queries, keys, term, in_logarithms, group)  # type: ignore[no-untyped-call]
    return found


def _passed_on(tensors: list[Tensor], group: dist.ProcessGroup) -> list[Tensor]:
    """What the process before this one holds; this one's goes to the next."""
    world, rank = dist.get_world_size(group), dist.get_rank(group)
    if world == 1:
        return tensors
    after, before = (dist.get_global_rank(group, (rank + step) % world) for step in (1, -1))
    received = [torch.empty_like(x) for x in tensors]
    sends = [dist.P2POp(dist.isend, x, after, group) for x in tensors]
    receives = [dist.P2POp(dist.irecv, x, before, group) for x in received]
    for work in dist.batch_isend_irecv([*sends, *receives]):
        work.wait()
    return received


class _Ring(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, queries: Tensor, keys: Tensor, term: Term, in_logarithms: bool, group: dist.ProcessGroup
    ) -> Tensor:
        block = keys.contiguous()
        found = term(queries, block, True)
        for _ in range(1, dist.get_world_size(group)):
            (block,) = _passed_on([block], group)
            more = term(queries, block, False)
            found = torch.logaddexp(found, more) if in_logarithms else found + more
        ctx.save_for_backward(queries, keys, found if in_logarithms else None)
        ctx.term, ctx.group = term, group
        return found

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        with torch.no_grad():
            gradients = _Ring._gradients(ctx, grad)
        if torch.is_grad_enabled():  # a graph of the backward is asked for
            once: Any = _Once.apply
            gradients = tuple(x if x is None else once(x, grad, *ctx.saved_tensors[:2]) for x in gradients)
        return *gradients, None, None, None

    @staticmethod
    def _gradients(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Of the queries, and of this process's keys."""
        queries, keys, found = ctx.saved_tensors
        for_queries, for_keys = ctx.needs_input_grad[:2]
        queries_grad = torch.zeros_like(queries) if for_queries else None
        # the block and its gradient, where one is wanted: both travel, and only the gradient comes home
        block = keys.contiguous()
        block_grad = torch.zeros_like(block) if for_keys else None
        world = dist.get_world_size(ctx.group)
        for step in range(world):
            q, k = queries.detach().requires_grad_(for_queries), block.detach().requires_grad_(for_keys)
            with torch.enable_grad():
                part = ctx.term(q, k, step == 0)
            share = 1 if found is None else (part.detach() - found).exp()
            grads = iter(torch.autograd.grad(part, [x for x in (q, k) if x.requires_grad], grad * share))
            if queries_grad is not None:
                queries_grad += next(grads)
            if block_grad is not None:
                block_grad += next(grads)
                (block_grad,) = _passed_on([block_grad], ctx.group)
            if step + 1 < world:
                (block,) = _passed_on([block], ctx.group)
        return queries_grad, block_grad


class _Once(torch.autograd.Function):
    """A gradient that depends on ``sources``, and whose own gradient is refused: silence would be one of zero."""

    @staticmethod
    def forward(ctx: Any, gradient: Tensor, *sources: Tensor) -> Tensor:
        return gradient.view_as(gradient)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> None:
        raise RuntimeError(
            "a second derivative of a loss over a group is not supported; compute it in one process, or by the formula "
            "in plain torch"
        )
