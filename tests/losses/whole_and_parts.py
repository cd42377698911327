"""Losses on a batch that lies in one process, and in parts in several: what test_group.py compares."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from fastssl import losses
from fastssl.compat import lightly, open_clip, solo
from fastssl.compat.facebook import dino, moco, moco_v3

DTYPES = (torch.float64, torch.bfloat16)
N, D, K = 8, 6, 10  # samples of the whole batch, features, prototypes or keys in the queue
EXACT = dict(rtol=1e-11, atol=1e-12)  # round-off of float64; what was computed in float32 is off by 1e-8 at least


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
    "InfoNCE, a learnt temperature": Case(lambda group: learnt(warmed(group), 1.0), ((N, D), (N, D), (2,))),
    "InfoNCE, a learnt temperature, ring": Case(
        lambda group: learnt(warmed(group, "ring"), 1.0), ((N, D), (N, D), (2,))
    ),
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
    "CPCLoss, a tensor a step": Case(lambda group: of_steps(group), ((N, D),) * 4),
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
    "DINOLoss, Facebook's": Case(
        lambda group: at_two_epochs(dino.DINOLoss(K, 3, 0.04, 0.07, 2, 4)), ((N, 3, K), (N, 2, K))
    ),
    "DINOLoss, solo's": Case(
        lambda group: at_two_epochs(solo.DINOLoss(K, 0.04, 0.07, 2, 4, num_large_crops=3)), ((N, 3, K), (N, 2, K))
    ),
    "DINOLoss, lightly's": Case(lambda group: lightlys_dino(), ((N, 3, K), (N, 2, K))),
    "NTXent, lightly's": Case(lambda group: lightly.NTXentLoss(0.2, gather_distributed=True)),
    "NTXentLoss, lightly's with a bank": Case(lambda group: lightlys_moco()),
    # these are told how many processes there are
    "ClipLoss, open_clip's": Case(
        lambda group: learnt(open_clip.ClipLoss(world_size=size(group)), 5.0), ((N, D), (N, D), (2,))
    ),
    "SigLipLoss, open_clip's": Case(
        lambda group: learnt(open_clip.SigLipLoss(world_size=size(group)), 5.0, -2.0), ((N, D), (N, D), (2,))
    ),
}


def size(group: str | None) -> int:
    return 1 if group is None else dist.get_world_size()


def warmed(group: str | None, strategy: str = "gather") -> Callable[..., Tensor]:
    """InfoNCE with a temperature above 0 that is learnt."""

    def call(a: Tensor, b: Tensor, factor: Tensor) -> Tensor:
        return losses.info_nce_loss(a, b, temperature=factor.square() + 0.1, group=group, strategy=strategy)

    return call


def lightlys_dino() -> Callable[..., Tensor]:
    """Two steps; teacher first, a list of views each."""
    loss = lightly.DINOLoss(K).double()
    return lambda s, t: loss(t.unbind(1), s.unbind(1)) + loss((2 * t).unbind(1), s.unbind(1), 0.07)


def lightlys_moco() -> Callable[..., Tensor]:
    """Two steps: the second sees what all processes put in at the first."""
    loss = lightly.NTXentLoss(0.2, (K, D), gather_distributed=True).double()
    loss.memory_bank.bank = torch.randn(K, D, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    return lambda q, k: loss(q, k) + loss(q * q, k * k)


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


def at_two_epochs(loss: dino.DINOLoss | solo.DINOLoss) -> Callable[..., Tensor]:
    """Crops one after another; the second step sees the center that the first moved."""
    loss = loss.double()

    def at(epoch: int, s: Tensor, t: Tensor) -> Tensor:
        if isinstance(loss, dino.DINOLoss):
            return loss(s, t, epoch)
        loss.epoch = epoch
        return loss(s, t)

    def call(s: Tensor, t: Tensor) -> Tensor:
        s, t = s.movedim(1, 0).flatten(0, 1), t.movedim(1, 0).flatten(0, 1)
        return at(0, s, t) + at(3, s, 2 * t)

    return call


def CPC(group: str | None, strategy: str = "gather") -> Callable[..., Tensor]:  # noqa: N802
    loss = losses.CPCLoss(0.2, group=group, strategy=strategy)
    return lambda a, b: loss(a.movedim(1, 0), b.movedim(1, 0))


def of_steps(group: str | None) -> Callable[..., Tensor]:
    """Two steps, each a tensor of its own."""
    loss = losses.CPCLoss(0.2, group=group)
    return lambda a, b, c, d: loss([a, c], [b, d])


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


class Layers(nn.Module):
    """A layer for each input that has samples, and what has none as parameters: what learns by a case's loss."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(nn.Linear(x.shape[-1], x.shape[-1]) for x in inputs(case) if len(x) == N)
        self.others = nn.ParameterList(x for x in inputs(case) if len(x) != N)
        self.double()

    def forward(self, *rows: Tensor) -> list[Tensor]:
        # no views, which FSDP2 warns of, and no parameter itself, whose memory it takes away
        return [*(1 * f(x) for f, x in zip(self.layers, rows, strict=True)), *(1 * x for x in self.others)]


def learnt_by(
    case: Case, group: str | None, parts: Callable[[Tensor], Tensor], wrap: Callable[[nn.Module], nn.Module]
) -> list[Tensor]:
    """The gradients of all parameters of ``Layers``, wrapped, after a backward of this process's part."""
    model = wrap(Layers(case))
    outputs = model(*(parts(x) for x in inputs(case) if len(x) == N))
    # every parameter has a part in it, as DistributedDataParallel asks: keys get no gradient from their loss
    (case.make(group)(*outputs) + sum(0 * x.sum() for x in outputs)).backward()
    gradients = [x.grad for x in model.parameters()]
    return [x.full_tensor() if isinstance(x, DTensor) else x for x in gradients]


def left_behind(group: str | None, parts: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    """What queues and centers hold after three batches; the queue goes round twice."""
    first = {
        "MoCoLoss": losses.MoCoLoss(0.2, dim=D, length=K, group=group),
        "DenseContrastive": losses.DenseContrastive(0.2, dim=D, length=K, group=group),
        "MoCo, Facebook's": moco.MoCo(lambda num_classes: nn.Identity(), dim=D, K=K),
        "NTXentLoss, lightly's": lightly.NTXentLoss(0.2, (K, D), gather_distributed=True),
        "MemoryBankModule, lightly's": lightly.MemoryBankModule((K, D), gather_distributed=True),
        "DINOLoss": losses.DINOLoss(K, group=group),
        "DINOLoss, Facebook's": dino.DINOLoss(K, 2, 0.04, 0.07, 2, 4),
        "DINOLoss, solo's": solo.DINOLoss(K, 0.04, 0.07, 2, 4),
        "DINOLoss, lightly's": lightly.DINOLoss(K),
    }
    modules = {name: module.double() for name, module in first.items()}
    generator = torch.Generator().manual_seed(3)
    for _ in range(3):
        q, k, logits = (
            parts(torch.randn(N, width, generator=generator, dtype=torch.float64)).requires_grad_()
            for width in (D, D, K)
        )
        both, grids = torch.stack([logits, logits + 1]), [x[:, :, None, None] for x in (q, k)]
        modules["MoCoLoss"](q, k)
        modules["DenseContrastive"](*grids, *grids)
        modules["MoCo, Facebook's"](q, k)
        modules["NTXentLoss, lightly's"](q, k)
        modules["MemoryBankModule, lightly's"](k, update=True)
        modules["DINOLoss"](both, both)
        modules["DINOLoss, Facebook's"](both.flatten(0, 1), both.flatten(0, 1), 0)
        modules["DINOLoss, solo's"](both.flatten(0, 1), both.flatten(0, 1))
        modules["DINOLoss, lightly's"](list(both), list(both))
    return {f"{name}: {key}": x for name, module in modules.items() for key, x in module.state_dict().items()}


def facebooks_training(parts: Callable[[Tensor], Tensor], wrap: Callable[[nn.Module], nn.Module]) -> dict[str, Tensor]:
    """Facebook's MoCo as its script trains it, wrapped whole and called by its forward: what it holds after 3 steps."""
    model = wrap(moco.MoCo(lambda num_classes: nn.Linear(D, num_classes), dim=5, K=K, m=0.9, T=0.2).double())
    optimizer = torch.optim.SGD([x for x in model.parameters() if x.requires_grad], lr=0.5)
    generator = torch.Generator().manual_seed(4)
    for _ in range(3):
        views = (parts(torch.randn(N, D, generator=generator, dtype=torch.float64)) for _ in range(2))
        torch.nn.functional.cross_entropy(*model(*views)).backward()
        optimizer.step()
        optimizer.zero_grad()
    return {name.removeprefix("module."): x for name, x in model.state_dict().items()}
