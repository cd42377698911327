"""Losses on a batch that lies in one process, and in parts in several: run by test_group.py in processes of its own."""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
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
from fastssl.losses import _ring

DTYPES = (torch.float64, torch.bfloat16)
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


def in_bfloat16(group: str | None) -> Callable[..., Tensor]:
    """A scale whose inverse bfloat16 cannot hold."""
    scale = torch.tensor(7.0, dtype=torch.bfloat16)
    return lambda a, b: losses.ClipLoss(group=group)(a, b, scale)


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
    "ClipLoss, a scale of 0": Case(lambda group: learnt(losses.ClipLoss(group=group), 0.0), ((N, D), (N, D), (2,))),
    "ClipLoss, a scale below 0": Case(lambda group: learnt(losses.ClipLoss(group=group), -3.0), ((N, D), (N, D), (2,))),
    "ClipLoss, a scale in bfloat16": Case(in_bfloat16, ((N, D), (N, D))),
    "CPCLoss": Case(lambda group: CPC(group), ((N, 3, D), (N, 3, D))),
    "CPCLoss, ring": Case(lambda group: CPC(group, "ring"), ((N, 3, D), (N, 3, D))),
    "BarlowTwins": Case(lambda group: losses.BarlowTwins(group=group)),
    "VICReg": Case(lambda group: losses.VICReg(group=group)),
    "SupCon": Case(with_labels, ((N, D),)),
    "KoLeo": Case(lambda group: losses.KoLeo(group=group), ((N, D),)),
    "MoCoLoss": Case(lambda group: twice(losses.MoCoLoss(0.2, dim=D, length=K, group=group), "queue")),
    "DenseContrastive": Case(
        lambda group: twice(losses.DenseContrastive(0.2, dim=D, length=K, group=group), "queue"),
        ((N, D, 2, 3), (N, D, 2, 3), (N, 4, 2, 3), (N, 4, 2, 3)),
    ),
    "DINOLoss": Case(lambda group: crops(losses.DINOLoss(K, group=group)), ((N, 3, K), (N, 2, K))),
    "DINOLoss, sinkhorn": Case(
        lambda group: crops(losses.DINOLoss(K, centering="sinkhorn", group=group)), ((N, 3, K), (N, 2, K))
    ),
    # these take all processes without being told
    "simclr_loss_func": Case(lambda group: views_of_images),
    "simclr_loss_func, 3 views": Case(lambda group: views_of_images, ((N, D), (N, D), (N, D))),
    "InfoNCE, solo's MoCo v3": Case(lambda group: solo.mocov3_loss_func),
    "MoCo, Facebook's": Case(lambda group: facebooks_moco()),
    "InfoNCE, Facebook's MoCo v3": Case(lambda group: facebooks_moco_v3()),
    "DINOLoss, Facebook's": Case(lambda group: facebooks_dino(), ((N, 3, K), (N, 2, K))),
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


def CPC(group: str | None, strategy: str = "gather") -> Callable[..., Tensor]:  # noqa: N802
    loss = losses.CPCLoss(0.2, group=group, strategy=strategy)
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
    # numbers that bfloat16 holds too
    return [torch.randn(shape, generator=generator).bfloat16().double() for shape in case.inputs]


def computed(
    case: Case, group: str | None, parts: Callable[[Tensor], Tensor], dtype: torch.dtype = torch.float64
) -> tuple[Tensor, list[Tensor]]:
    """Loss and gradients of this process's part; what has no samples (scales) is not in parts."""
    mine = [(parts(x) if len(x) == N else x.clone()).to(dtype).requires_grad_() for x in inputs(case)]
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
    others = ", ".join(map(str, range(1, world)))
    told = (
        "NTXent: every process must have as many samples, of one kind, and the same settings; got "
        "(3, 6) float32, (3, 6) float32, strategy='gather' on rank 0; "
        "(2, 6) float32, (2, 6) float32, strategy='gather' on "
        f"rank{'s' if world > 2 else ''} {others} (of batches that differ in size, leave out the last: drop_last=True)"
    )
    with pytest.raises(ValueError, match=re.escape(told)):
        losses.NTXent(0.2, group="world")(rows, rows)


# no samples, fewer, other features, another dtype, a dimension more, and integers
BAD = (lambda x: x[:0], lambda x: x[1:], lambda x: x[..., 1:], Tensor.float, lambda x: x[None], Tensor.long)


def assert_bad_input_on_one_process_is_told_on_all(rank: int, world: int) -> None:
    """None waits for ever for the one that is wrong, and the next call works."""
    for name, case in CASES.items():
        for spoil in BAD:
            mine = [x.chunk(world)[rank].clone() if len(x) == N else x for x in inputs(case)]
            if rank == world - 1:
                mine = [spoil(x) if x.dim() > 1 else x for x in mine]
            with pytest.raises((TypeError, ValueError), match=rf"^{name.partition(',')[0]}: .*on rank {world - 1}"):
                case.make("world")(*mine)


def assert_bad_numbers_on_one_process_are_told_on_all(rank: int, world: int) -> None:
    rows, wrong = torch.randn(2, 3, D), float("nan") if rank == world - 1 else 0.5
    calls = {
        "NTXent: temperature": lambda: losses.nt_xent_loss(*rows, temperature=wrong, group="world"),
        "InfoNCE: temperature": lambda: losses.info_nce_loss(*rows, temperature=wrong, group="world"),
        "ClipLoss: logit_scale": lambda: losses.clip_loss(*rows, logit_scale=wrong, group="world"),
        "SigLipLoss: logit_bias": lambda: losses.siglip_loss(*rows, logit_scale=1.0, logit_bias=wrong, group="world"),
        "DINOLoss: teacher_temp": lambda: losses.DINOLoss(D, group="world")(rows, rows, teacher_temp=wrong),
    }
    for told, call in calls.items():
        with pytest.raises(ValueError, match=rf"^{told} must be finite.*; got nan \(on rank {world - 1}\)"):
            call()
    with pytest.raises(ValueError, match=f"strategy='ring' on rank {world - 1}"):
        losses.nt_xent_loss(*rows, temperature=0.5, group="world", strategy="ring" if rank == world - 1 else "gather")


def assert_a_scale_may_be_any_number(rank: int, world: int) -> None:
    rows = torch.randn(2, 3, D, generator=torch.Generator().manual_seed(rank))
    for scale in (0.0, -3.0):
        found, want = (losses.clip_loss(*rows, logit_scale=x, group="world") for x in (scale, torch.tensor(scale)))
        torch.testing.assert_close(found, want)
        if scale == 0:
            torch.testing.assert_close(found, torch.tensor(3.0 * world).log())


def assert_gradients_only_where_asked(rank: int, world: int) -> None:
    """The ring carries no gradients of keys that want none."""
    rows = torch.randn(2, 3, D, generator=torch.Generator().manual_seed(rank)).unbind()
    sent = []
    passed_on = _ring._passed_on

    def counted(tensors: list[Tensor], group: dist.ProcessGroup) -> list[Tensor]:
        sent.append(len(tensors))
        return passed_on(tensors, group)

    found = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_ring, "_passed_on", counted)
        for wanted in ((True, True), (True, False), (False, True)):
            sent.clear()
            leaves = [x.clone().requires_grad_(want) for x, want in zip(rows, wanted, strict=True)]
            losses.InfoNCE(0.2, group="world", strategy="ring")(*leaves).backward()
            found[wanted] = [x.grad for x in leaves]
            assert sum(sent) == 2 * (world - 1) + (world if wanted[1] else 0)
    both = found[True, True]
    assert found[True, False][1] is found[False, True][0] is None
    torch.testing.assert_close(found[True, False][0], both[0])
    torch.testing.assert_close(found[False, True][1], both[1])


def process(rank: int, world: int, folder: str) -> None:
    """One process: all cases on its part, saved as ``DTYPE.RANK.pt``."""
    torch.set_num_threads(1)
    meeting = dict(init_method=f"file://{folder}/meet", timeout=timedelta(seconds=60))
    dist.init_process_group("gloo", rank=rank, world_size=world, **meeting)
    for dtype in DTYPES:
        found = {
            name: computed(case, "world", lambda x: x.chunk(world)[rank].clone(), dtype) for name, case in CASES.items()
        }
        torch.save(found, Path(folder) / f"{dtype}.{rank}.pt")
    for wrap in (torch.nn.parallel.DistributedDataParallel, fully_shard):
        assert_trains_as_one_process(wrap, rank, world)
    assert_queues_are_alike(rank, world)
    if world > 1:
        assert_uneven_batches_are_refused(rank, world)
        assert_bad_input_on_one_process_is_told_on_all(rank, world)
        assert_bad_numbers_on_one_process_are_told_on_all(rank, world)
        assert_a_scale_may_be_any_number(rank, world)
        assert_gradients_only_where_asked(rank, world)
    dist.barrier()
    dist.destroy_process_group()
