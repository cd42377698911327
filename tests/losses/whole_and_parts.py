"""Losses on a batch that lies in one process, and in parts in several: run by test_group.py in processes of its own."""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from fastssl import losses
from fastssl.compat import solo
from fastssl.compat.facebook import dino, moco, moco_v3

N, D, K = 8, 6, 10  # samples of the whole batch, features, prototypes or keys in the queue


@dataclass(frozen=True)
class Case:
    """``make(group)`` gives a function of the inputs; ``inputs`` are their shapes, with N where the samples are."""

    make: Callable[[str | None], Callable[..., Tensor]]
    inputs: tuple[tuple[int, ...], ...] = ((N, D), (N, D))


def with_labels(group: str | None) -> Callable[..., Tensor]:
    loss = losses.SupCon(0.2, group=group)
    return lambda features: loss(features, part_of(torch.tensor([0, 1, 0, 2, 1, 0, 3, 2]), features))


def part_of(whole: Tensor, like: Tensor) -> Tensor:
    """This process's part of what belongs to the whole batch."""
    if len(like) == len(whole):
        return whole
    return whole.chunk(dist.get_world_size())[dist.get_rank()]


def learnt(loss: Callable[..., Tensor], *scales: float) -> Callable[..., Tensor]:
    """With scales that a model would learn; their gradients count too, as the last input's."""

    def call(a: Tensor, b: Tensor, factors: Tensor) -> Tensor:
        return loss(a, b, *(scale * factor for scale, factor in zip(scales, factors, strict=False)))

    return call


CASES = {
    "InfoNCE": Case(lambda group: losses.InfoNCE(0.2, group=group)),
    "InfoNCE, symmetric": Case(lambda group: losses.InfoNCE(0.2, symmetric=True, group=group)),
    "InfoNCE, ring": Case(lambda group: losses.InfoNCE(0.2, group=group, strategy="ring")),
    "NTXent": Case(lambda group: losses.NTXent(0.2, group=group)),
    "NTXent, ring": Case(lambda group: losses.NTXent(0.2, group=group, strategy="ring")),
    "ClipLoss": Case(lambda group: learnt(losses.ClipLoss(group=group), 5.0), ((N, D), (N, D), (2,))),
    "ClipLoss, ring": Case(
        lambda group: learnt(losses.ClipLoss(group=group, strategy="ring"), 5.0), ((N, D), (N, D), (2,))
    ),
    "SigLipLoss": Case(lambda group: learnt(losses.SigLipLoss(group=group), 5.0, -2.0), ((N, D), (N, D), (2,))),
    "SigLipLoss, ring": Case(
        lambda group: learnt(losses.SigLipLoss(group=group, strategy="ring"), 5.0, -2.0), ((N, D), (N, D), (2,))
    ),
    "CPCLoss": Case(lambda group: CPC(group), ((N, 3, D), (N, 3, D))),
    "BarlowTwins": Case(lambda group: losses.BarlowTwins(group=group)),
    "VICReg": Case(lambda group: losses.VICReg(group=group)),
    "SupCon": Case(with_labels, ((N, D),)),
    "KoLeo": Case(lambda group: losses.KoLeo(group=group), ((N, D),)),
    "MoCoLoss": Case(lambda group: twice(losses.MoCoLoss(0.2, dim=D, length=K, group=group), "queue")),
    "DINOLoss": Case(lambda group: crops(losses.DINOLoss(K, group=group)), ((N, 3, K), (N, 2, K))),
    "DINOLoss, sinkhorn": Case(
        lambda group: crops(losses.DINOLoss(K, centering="sinkhorn", group=group)), ((N, 3, K), (N, 2, K))
    ),
    # these take all processes without being told
    "solo, SimCLR": Case(lambda group: views_of_images),
    "solo, SimCLR of 3 views": Case(lambda group: views_of_images, ((N, D), (N, D), (N, D))),
    "solo, MoCo v3": Case(lambda group: solo.mocov3_loss_func),
    "facebook, MoCo": Case(lambda group: facebooks_moco()),
    "facebook, MoCo v3": Case(lambda group: facebooks_moco_v3()),
    "facebook, DINO": Case(lambda group: facebooks_dino(), ((N, 3, K), (N, 2, K))),
}


def views_of_images(*views: Tensor) -> Tensor:
    return solo.simclr_loss_func(torch.cat(views), part_of(torch.arange(N), views[0]).repeat(len(views)), 0.2)


def facebooks_moco() -> Callable[..., Tensor]:
    """Two steps, the second by the logits."""
    model = moco.MoCo(lambda num_classes: torch.nn.Identity(), dim=D, K=K, T=0.2).double()
    model.queue = torch.randn(D, K, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    return lambda q, k: model.loss(q, k) + torch.nn.functional.cross_entropy(*model(q * q, k * k))


def facebooks_moco_v3() -> Callable[..., Tensor]:
    model = moco_v3.MoCo(lambda num_classes: torch.nn.Sequential(OrderedDict(fc=torch.nn.Linear(D, 4))), 5, 7, T=0.2)
    return model.double().contrastive_loss


def facebooks_dino() -> Callable[..., Tensor]:
    loss = dino.DINOLoss(K, 3, 0.04, 0.07, 2, 4).double()

    def call(s: Tensor, t: Tensor) -> Tensor:
        s, t = s.movedim(1, 0).flatten(0, 1), t.movedim(1, 0).flatten(0, 1)
        return loss(s, t, 0) + loss(s, 2 * t, 3)

    return call


def CPC(group: str | None) -> Callable[..., Tensor]:  # noqa: N802
    loss = losses.CPCLoss(0.2, group=group)
    return lambda a, b: loss(a.movedim(1, 0), b.movedim(1, 0))


def twice(loss: torch.nn.Module, buffer: str) -> Callable[..., Tensor]:
    """Two steps of a loss that remembers: the second sees what all processes put in at the first."""
    loss = loss.double()
    generator = torch.Generator().manual_seed(7)
    setattr(loss, buffer, torch.randn(getattr(loss, buffer).shape, generator=generator, dtype=torch.float64))
    return lambda *rows: loss(*rows) + loss(*(x * x for x in rows))


def crops(loss: torch.nn.Module) -> Callable[..., Tensor]:
    loss = loss.double()
    return lambda s, t: loss(s.movedim(1, 0), t.movedim(1, 0)) + loss(s.movedim(1, 0), 2 * t.movedim(1, 0))


def inputs(case: Case) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in case.inputs]


def computed(case: Case, group: str | None, parts: Callable[[Tensor], Tensor]) -> tuple[Tensor, list[Tensor]]:
    """Loss and gradients of this process's part; what has no samples (scales) is not in parts."""
    mine = [(parts(x) if len(x) == N else x.clone()).requires_grad_() for x in inputs(case)]
    loss = case.make(group)(*mine)
    loss.backward()
    return loss.detach(), [torch.zeros_like(x) if x.grad is None else x.grad for x in mine]


def network() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(D, 8), torch.nn.ReLU(), torch.nn.Linear(8, D)).double()


def trained(model: torch.nn.Module, views: Tensor, group: str | None) -> torch.nn.Module:
    """One backward of SimCLR's loss."""
    losses.NTXent(0.2, group=group)(*model(views.flatten(0, 1)).chunk(2)).backward()
    return model


def assert_trains_as_one_process(wrap: Callable[[torch.nn.Module], torch.nn.Module], rank: int, world: int) -> None:
    """Parameters get the gradient of the whole batch in one process."""
    views = torch.randn(2, N, D, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    whole = trained(network(), views, None)
    parts = trained(wrap(network()), views.chunk(world, dim=1)[rank], "world")
    for got, want in zip(parts.parameters(), whole.parameters(), strict=True):
        gradient = got.grad.full_tensor() if isinstance(got.grad, DTensor) else got.grad
        torch.testing.assert_close(gradient, want.grad)


def assert_queues_are_alike(rank: int, world: int) -> None:
    """Each process drew another queue."""
    torch.manual_seed(rank)
    loss = losses.MoCoLoss(0.2, dim=D, length=4 * world, group="world")
    loss(torch.randn(2, D), torch.randn(2, D))
    queues = [torch.empty_like(loss.queue) for _ in range(world)]
    dist.all_gather(queues, loss.queue)
    assert all(torch.equal(queue, loss.queue) for queue in queues)


def assert_uneven_batches_are_refused(rank: int, world: int) -> None:
    rows = torch.randn(3 if rank == 0 else 2, D)
    two, told = torch.cat([rows, rows]), f"got {', '.join(['3', *['2'] * (world - 1)])} in the order"
    for owner, call in (
        ("NTXent", lambda: losses.NTXent(0.2, group="world")(rows, rows)),
        ("MoCo", lambda: moco.MoCo(lambda num_classes: torch.nn.Identity(), D, K)(rows, rows)),
        ("DINOLoss", lambda: dino.DINOLoss(D, 2, 0.04, 0.07, 2, 4)(two, two, 0)),
        ("simclr_loss_func", lambda: solo.simclr_loss_func(rows, torch.arange(len(rows)))),
    ):
        with pytest.raises(ValueError, match=re.escape(f"{owner}: every process must have as many samples; {told}")):
            call()


def process(rank: int, world: int, folder: str) -> None:
    """One process: all cases on its part, saved as ``RANK.pt``."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world)
    found = {name: computed(case, "world", lambda x: x.chunk(world)[rank].clone()) for name, case in CASES.items()}
    torch.save(found, Path(folder) / f"{rank}.pt")
    for wrap in (torch.nn.parallel.DistributedDataParallel, fully_shard):
        assert_trains_as_one_process(wrap, rank, world)
    assert_queues_are_alike(rank, world)
    if world > 1:
        assert_uneven_batches_are_refused(rank, world)
    dist.barrier()
    dist.destroy_process_group()
