"""lightly's losses in a step of its users: projections in, forward and backward."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from benchmarks import rivals, where
from benchmarks.harness import Case
from benchmarks.losses import Loss, forward_backward, whole
from benchmarks.ops import distillation_loss
from benchmarks.ops.queue_info_nce import chunked as queue_reference
from fastssl.compat import lightly
from fastssl.ops.nt_xent import reference as nt_xent_reference  # type: ignore[attr-defined]

TEMPERATURE = 0.5  # lightly's default
Make = Callable[[Any], Loss]  # of the module that has lightly's names


def case(shape: str, name: str, make: Make, inputs: Callable[[], list[Tensor]], exact: Loss) -> Case:
    """``make`` makes the loss of either library's names; ``exact`` is the formula of the same inputs."""
    return Case(
        op="lightly",
        shape=shape,
        dtype="float32",
        providers=whole(name, lambda: make(lightly), lambda: make(rivals.load("lightly.loss")), inputs),
        exact=lambda: forward_backward(exact, *inputs())(),
        peak=True,
    )


def projections(n: int, d: int) -> list[Tensor]:
    """Of two views; they are not normalised."""
    generator = where.generator()
    first, noise = (torch.randn(n, d, generator=generator) for _ in range(2))
    return [first.requires_grad_(), (first + noise).detach().requires_grad_()]


def simclr(n: int, d: int) -> Case:
    def exact(z0: Tensor, z1: Tensor) -> Tensor:
        return nt_xent_reference(*(normalize(z.double(), dim=1) for z in (z0, z1)), TEMPERATURE)

    inputs = functools.partial(projections, n, d)
    return case(f"NTXentLoss N={n} d={d}", "lightly NTXentLoss", lambda library: library.NTXentLoss(), inputs, exact)


def moco(n: int, k: int, d: int) -> Case:
    """The keys that a call writes into the bank are taken out before the next, so that each sees the same bank."""

    def inputs() -> list[Tensor]:
        query, key = projections(n, d)
        return [query, key.detach()]

    def negatives() -> Tensor:
        return normalize(torch.randn(k, d, generator=where.generator().manual_seed(1)), dim=1)

    def make(library: Any) -> Loss:
        criterion, bank = library.NTXentLoss(memory_bank_size=(k, d)), negatives()
        memory = criterion.memory_bank
        memory.bank.copy_(bank)

        def loss(query: Tensor, key: Tensor) -> Tensor:
            memory.bank[:n] = bank[:n]
            memory.bank_ptr.zero_()
            found: Tensor = criterion(query, key)
            return found

        return loss

    def exact(query: Tensor, key: Tensor) -> Tensor:
        unit = [normalize(x.double(), dim=1) for x in (query, key)]
        return queue_reference(*unit, negatives().double(), TEMPERATURE)

    return case(f"NTXentLoss memory_bank_size=({k}, {d}) N={n}", "lightly NTXentLoss, memory bank", make, inputs, exact)


def dino(batch: int, prototypes: int) -> Case:
    """Lists of crops; the center, which a call moves, is put back before the next."""
    students = distillation_loss.STUDENTS

    def inputs() -> list[Tensor]:
        student, teacher, center = distillation_loss.inputs(batch, prototypes, torch.float32)
        return [*(crop.clone().requires_grad_() for crop in student), *(crop.clone() for crop in teacher), center]

    def make(library: Any) -> Loss:
        criterion = library.DINOLoss(prototypes)

        def loss(*crops: Tensor) -> Tensor:
            criterion.center.view(-1).copy_(crops[-1])
            found: Tensor = criterion(list(crops[students:-1]), list(crops[:students]))
            return found

        return loss

    def exact(*crops: Tensor) -> Tensor:
        student, teacher = torch.stack(crops[:students]).double(), torch.stack(crops[students:-1]).double()
        return distillation_loss.pair_by_pair(student, teacher, crops[-1].double())

    shape = f"DINOLoss crops={students}+{distillation_loss.TEACHERS} batch={batch} prototypes={prototypes}"
    return case(shape, "lightly DINOLoss", make, inputs, exact)


def cases() -> list[Case]:
    return where.sizes(
        cpu=lambda: [simclr(2048, 128), moco(2048, 65536, 128), dino(64, 65536)],
        small=lambda: [simclr(8, 16), moco(4, 64, 16), dino(2, 64)],
    )()
