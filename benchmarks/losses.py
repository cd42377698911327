"""What losses are measured against: the forms in which plain torch computes one, and other libraries' whole losses."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks import rivals, where
from benchmarks.harness import AGAIN, OURS, Work

Loss = Callable[..., Tensor]


def autocast(loss: Loss) -> Loss:
    """Products in bfloat16 and the rest in float32, as mixed precision has it."""

    def cast(*rows: Tensor, **settings: Any) -> Tensor:
        with torch.autocast(rows[0].device.type, torch.bfloat16):
            return loss(*rows, **settings)

    return cast


def in_float32(loss: Loss) -> Loss:
    """All in float32: the faster way where a processor multiplies bfloat16 slowly."""

    def widened(*rows: Tensor, **settings: Any) -> Tensor:
        return loss(*(x.float() for x in rows), **settings)

    return widened


def cut_cross_entropy() -> Loss:
    """Apple's cross-entropy of a linear layer, with every gradient (arXiv:2411.09009): its filter would drop most."""
    linear_cross_entropy = rivals.load("cut_cross_entropy").linear_cross_entropy

    def loss(queries: Tensor, keys: Tensor, temperature: float) -> Tensor:
        own = torch.arange(len(queries), device=queries.device)
        found: Tensor = linear_cross_entropy(queries / temperature, keys, own, filter_eps=None)
        return found

    return loss


def inf_cl() -> Loss:
    """Inf-CL's loss on one GPU (arXiv:2410.17243)."""
    flash = rivals.load("inf_cl").cal_flash_loss

    def loss(queries: Tensor, keys: Tensor, temperature: float) -> Tensor:
        found: Tensor = flash(queries, keys, scale=1 / temperature, head_dim=min(queries.shape[1], 256)).mean()
        return found

    return loss


# their kernels need a GPU
FUSED: dict[str, Callable[[], Loss]] = {"Cut Cross-Entropy": cut_cross_entropy, "Inf-CL": inf_cl}


def forms(ours: Loss, reference: Loss, chunked: Loss, dtype: torch.dtype) -> dict[str, Callable[[], Loss]]:
    """What makes each form, by its provider's name; ``chunked`` is the formula over parts, each recomputed."""
    made: dict[str, Callable[[], Loss]] = {
        OURS: lambda: ours,
        "torch eager": lambda: reference,
        "torch eager again": lambda: reference,  # the same thing twice: the spread of this run
        "torch.compile": lambda: where.compiled(reference),
        "torch.compile, chunked": lambda: where.compiled(chunked),
    }
    if dtype == torch.bfloat16:
        made |= {
            "torch eager, autocast": lambda: autocast(reference),
            "torch.compile, autocast": lambda: where.compiled(autocast(reference)),
        }
        made |= where.only_on_cpu(  # no GPU multiplies float32 faster
            {
                "torch.compile, in float32": lambda: where.compiled(in_float32(reference)),
                "torch.compile, chunked, in float32": lambda: where.compiled(in_float32(chunked)),
            }
        )
    return made


def forward_backward(loss: Loss, *inputs: Tensor) -> Work:
    """The work of ``loss`` of the inputs and of the gradients of those that require one: it returns all of these."""
    leaves = [x for x in inputs if x.requires_grad]

    def work() -> tuple[Tensor, ...]:
        for x in leaves:
            x.grad = None
        found = loss(*inputs)
        found.backward()
        return found.detach(), *(x.grad for x in leaves)

    return work


def whole(
    name: str, ours: Callable[[], Loss], theirs: Callable[[], Loss], inputs: Callable[[], Sequence[Tensor]]
) -> dict[str, Callable[[], Work]]:
    """The providers of a loss that users of another library call: ours in its place, theirs, theirs compiled."""
    once = functools.lru_cache(1)(theirs)  # what is compiled must be the same for all the buffers that take turns
    criteria = {
        OURS: ours,
        name: theirs,
        name + AGAIN: theirs,  # the same thing twice: the spread of this run
        f"torch.compile, {name}": lambda: where.compiled(once()),
    }
    return {
        provider: functools.partial(lambda make: forward_backward(make(), *inputs()), make)
        for provider, make in criteria.items()
    }
