"""solo-learn's losses in a step of its users: features in, forward and backward.

Its package asks for pytorch_lightning, and the losses of its last version on PyPI take other arguments than those of
its repository: theirs are the repository's formulas, arranged as there.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from benchmarks import where
from benchmarks.harness import Case
from benchmarks.losses import Loss, forward_backward, whole
from fastssl.compat import solo

TEMPERATURE = 0.2


def case(shape: str, ours: Loss, theirs: Loss, inputs: Callable[[], Sequence[Tensor]]) -> Case:
    """``theirs`` of the same inputs in float64 is what both must give."""

    def exact() -> tuple[Tensor, ...]:
        def wide(*given: Tensor) -> Tensor:
            return theirs(*(x.double() if x.is_floating_point() else x for x in given))

        return forward_backward(wide, *inputs())()

    return Case(
        op="solo",
        shape=shape,
        dtype="float32",
        providers=whole("solo-learn's formula", lambda: ours, lambda: theirs, inputs),
        exact=exact,
        peak=True,
    )


def views(n: int, d: int) -> tuple[Tensor, Tensor]:
    generator = where.generator()
    first, noise = (torch.randn(n, d, generator=generator) for _ in range(2))
    return first, first + noise


def simclr(n: int, d: int) -> Case:
    def formula(z: Tensor, indexes: Tensor) -> Tensor:
        z = normalize(z, dim=-1)
        similar = torch.exp(torch.einsum("if,jf->ij", z, z) / TEMPERATURE)
        positive = indexes[:, None] == indexes[None]
        positive.fill_diagonal_(False)
        negative = indexes[:, None] != indexes[None]
        of_positives, of_negatives = (similar * positive).sum(1), (similar * negative).sum(1)
        return -torch.log(of_positives / (of_positives + of_negatives)).mean()

    def inputs() -> list[Tensor]:
        return [torch.cat(views(n, d)).requires_grad_(), torch.arange(n).repeat(2)]

    ours = functools.partial(solo.simclr_loss_func, temperature=TEMPERATURE)
    return case(f"simclr_loss_func N={n} d={d}", ours, formula, inputs)


def moco_v2(n: int, k: int, d: int) -> Case:
    def formula(query: Tensor, key: Tensor, queue: Tensor) -> Tensor:
        positive = torch.einsum("nc,nc->n", query, key)[:, None]
        logits = torch.cat([positive, torch.einsum("nc,ck->nk", query, queue)], 1) / TEMPERATURE
        return cross_entropy(logits, torch.zeros(n, dtype=torch.int64, device=logits.device))

    def inputs() -> list[Tensor]:
        query, key = (normalize(x, dim=1) for x in views(n, d))
        queue = normalize(torch.randn(d, k, generator=where.generator().manual_seed(1)), dim=0)
        return [query.requires_grad_(), key, queue]

    ours = functools.partial(solo.mocov2plus_loss_func, temperature=TEMPERATURE)
    return case(f"mocov2plus_loss_func N={n} K={k} d={d}", ours, formula, inputs)


def cases() -> list[Case]:
    return where.sizes(
        cpu=lambda: [simclr(256, 128), simclr(2048, 128), moco_v2(256, 65536, 128)],
        small=lambda: [simclr(8, 16), moco_v2(4, 64, 16)],
    )()
