"""What Facebook's repositories compute around their networks: DINO's loss, MoCo's, MAE's masking and its loss.

The repositories are no packages to install: theirs are the same formulas, arranged as there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from benchmarks import where
from benchmarks.harness import Case
from benchmarks.losses import Loss, forward_backward, whole
from benchmarks.ops.distillation_loss import STUDENT_TEMP, STUDENTS, TEACHER_TEMP, TEACHERS, pair_by_pair
from benchmarks.ops.distillation_loss import inputs as logits
from fastssl.compat.facebook import mae
from fastssl.compat.facebook.dino import DINOLoss
from fastssl.compat.facebook.moco import MoCo
from fastssl.ops.update_center import reference as update_center  # type: ignore[attr-defined]

MOMENTUM = 0.9
TEMPERATURE = 0.07  # MoCo's default
PATCH, REMOVED = 16, 0.75  # MAE's


def case(
    shape: str,
    name: str,
    ours: Callable[[], Loss],
    theirs: Callable[[], Loss],
    inputs: Callable[[], Sequence[Tensor]],
    exact: Loss,
) -> Case:
    """``exact`` is the formula in float64, of the same inputs."""
    return Case(
        op="facebook",
        shape=shape,
        dtype="float32",
        providers=whole(name, ours, theirs, inputs),
        exact=lambda: forward_backward(exact, *inputs())(),
        peak=True,
    )


def crops(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """(crops B, K) as (crops, B, K)."""
    return student.unflatten(0, (STUDENTS, -1)), teacher.unflatten(0, (TEACHERS, -1))


def dino(batch: int, prototypes: int) -> Case:
    """Crops one after another, student first, and the center moves."""

    def inputs() -> list[Tensor]:
        student, teacher, center = logits(batch, prototypes, torch.float32)
        return [student.flatten(0, 1).requires_grad_(), teacher.flatten(0, 1), center]

    def theirs(student: Tensor, teacher: Tensor, center: Tensor) -> Tensor:
        student, teacher = crops(student, teacher)
        found, moving = pair_by_pair(student, teacher, center), center.clone()
        with torch.no_grad():
            update_center(moving, teacher, MOMENTUM)
        return found

    def ours() -> Loss:
        criterion = DINOLoss(prototypes, STUDENTS, TEACHER_TEMP, TEACHER_TEMP, 0, 1, STUDENT_TEMP, MOMENTUM)

        def loss(student: Tensor, teacher: Tensor, center: Tensor) -> Tensor:
            criterion.center.copy_(center)
            found: Tensor = criterion(student, teacher, 0)
            return found

        return loss

    def exact(student: Tensor, teacher: Tensor, center: Tensor) -> Tensor:
        return pair_by_pair(*crops(student.double(), teacher.double()), center.double())

    shape = f"DINOLoss crops={STUDENTS}+{TEACHERS} batch={batch} prototypes={prototypes}"
    return case(shape, "DINO's formula, pair by pair", ours, lambda: theirs, inputs, exact)


def moco(n: int, k: int, d: int) -> Case:
    """The step behind the encoders, which give the features as they come: loss, and the keys into the queue.

    The keys that a call writes are taken out before the next, so that each sees the same queue.
    """

    def inputs() -> list[Tensor]:
        generator = where.generator()
        query, noise = (torch.randn(n, d, generator=generator) for _ in range(2))
        return [query.requires_grad_(), (query + noise).detach()]

    def negatives() -> Tensor:
        return normalize(torch.randn(d, k, generator=where.generator().manual_seed(1)), dim=0)

    def formula(query: Tensor, key: Tensor, queue: Tensor) -> tuple[Tensor, Tensor]:
        query, key = normalize(query, dim=1), normalize(key, dim=1)
        positive = torch.einsum("nc,nc->n", query, key)[:, None]
        found = torch.cat([positive, torch.einsum("nc,ck->nk", query, queue)], 1) / TEMPERATURE
        return cross_entropy(found, torch.zeros(n, dtype=torch.int64, device=found.device)), key

    def theirs() -> Loss:
        queue = negatives()
        first = queue[:, :n].clone()

        def loss(query: Tensor, key: Tensor) -> Tensor:
            queue[:, :n] = first
            found, key = formula(query, key, queue.clone())  # as there: the queue changes before the backward
            queue[:, :n] = key.T
            return found

        return loss

    def ours() -> Loss:
        model, bank = MoCo(lambda num_classes: nn.Identity(), d, k, T=TEMPERATURE), negatives()
        model.queue.copy_(bank)

        def loss(query: Tensor, key: Tensor) -> Tensor:
            model.queue[:, :n] = bank[:, :n]
            model.queue_ptr.zero_()
            return model.loss(query, key)

        return loss

    def exact(query: Tensor, key: Tensor) -> Tensor:
        return formula(query.double(), key.double(), negatives().double())[0]

    return case(f"MoCo.loss N={n} K={k} d={d}", "MoCo's formula", ours, theirs, inputs, exact)


def masking(n: int, length: int, d: int) -> Case:
    """Which patches remain is drawn alike in each call; the loss is there to have a gradient."""

    def formula(x: Tensor, mask_ratio: float) -> tuple[Tensor, Tensor, Tensor]:
        kept = int(length * (1 - mask_ratio))
        ids_shuffle = torch.rand(n, length, device=x.device).argsort(dim=1)
        ids_restore = ids_shuffle.argsort(dim=1)
        masked = x.gather(1, ids_shuffle[:, :kept, None].repeat(1, 1, d))
        mask = torch.ones(n, length, device=x.device)
        mask[:, :kept] = 0
        return masked, mask.gather(1, ids_restore), ids_restore

    def of_kept(random_masking: Callable[..., tuple[Tensor, Tensor, Tensor]]) -> Loss:
        def loss(x: Tensor) -> Tensor:
            torch.manual_seed(0)
            return random_masking(x, REMOVED)[0].mean()

        return loss

    def inputs() -> list[Tensor]:
        return [torch.randn(n, length, d, generator=where.generator()).requires_grad_()]

    shape = f"random_masking {n} x {length} x {d}"
    ours, theirs = of_kept(mae.random_masking), of_kept(formula)
    return case(shape, "MAE's formula", lambda: ours, lambda: theirs, inputs, lambda x: theirs(x.double()))


def pixels(n: int, side: int) -> Case:
    length = (side // PATCH) ** 2

    def formula(pred: Tensor, imgs: Tensor, mask: Tensor) -> Tensor:
        grid = side // PATCH
        patches = imgs.reshape(n, 3, grid, PATCH, grid, PATCH)
        target = torch.einsum("nchpwq->nhwpqc", patches).reshape(n, length, PATCH**2 * 3)
        mean, var = target.mean(dim=-1, keepdim=True), target.var(dim=-1, keepdim=True)
        target = (target - mean) / (var + 1e-6) ** 0.5
        return (((pred - target) ** 2).mean(dim=-1) * mask).sum() / mask.sum()

    def ours(pred: Tensor, imgs: Tensor, mask: Tensor) -> Tensor:
        return mae.forward_loss(imgs, pred, mask, norm_pix_loss=True)

    def inputs() -> list[Tensor]:
        generator = where.generator()
        pred = torch.randn(n, length, PATCH**2 * 3, generator=generator)
        imgs = torch.rand(n, 3, side, side, generator=generator)
        return [pred.requires_grad_(), imgs, (torch.rand(n, length, generator=generator) < REMOVED).float()]

    def exact(*given: Tensor) -> Tensor:
        return formula(*(x.double() for x in given))

    return case(
        f"forward_loss {n} x 3 x {side} x {side}", "MAE's formula", lambda: ours, lambda: formula, inputs, exact
    )


def cases() -> list[Case]:
    return where.sizes(
        cpu=lambda: [dino(64, 65536), moco(256, 65536, 128), masking(256, 196, 768), pixels(64, 224)],
        small=lambda: [dino(2, 64), moco(4, 64, 16), masking(2, 16, 8), pixels(2, 32)],
    )()
