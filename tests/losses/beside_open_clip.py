"""A step of training by open_clip's losses and by ours: run by test_beside_open_clip.py in processes of its own."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.functional import normalize
from torch.nn.parallel import DistributedDataParallel

from benchmarks import rivals
from fastssl import losses
from fastssl.compat import open_clip as compat

WAYS = ("bidir", "shift", "reduce", "gather")  # in which open_clip computes SigLIP's loss
N, D = 8, 6  # pairs of the whole batch, features


class Towers(nn.Module):
    """Unit features of images and texts, and the scale and bias of their products, all to be learnt."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.images, self.texts = nn.Linear(5, D), nn.Linear(4, D)
        self.log_scale, self.bias = nn.Parameter(torch.tensor(2.3)), nn.Parameter(torch.tensor(-4.0))
        self.double()

    def forward(self, images: Tensor, texts: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        rows = normalize(self.images(images), dim=1), normalize(self.texts(texts), dim=1)
        return *rows, self.log_scale.exp(), self.bias


Loss = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def both(rank: int, world: int) -> dict[str, tuple[Loss, Loss]]:
    """By name, open_clip's loss and ours, of features that are unit rows already."""
    theirs = rivals.load("open_clip.loss")
    place = dict(rank=rank, world_size=world)
    clip = theirs.ClipLoss(local_loss=True, gather_with_grad=True, **place)
    found: dict[str, tuple[Loss, Loss]] = {}
    for strategy in ("gather", "ring"):
        settings = dict(normalized=True, group="world", strategy=strategy)
        our_clip, our_siglip = losses.ClipLoss(**settings), losses.SigLipLoss(**settings)
        found[f"ClipLoss, {strategy}"] = (
            lambda a, b, scale, bias: clip(a, b, scale) + 0 * bias,
            lambda a, b, scale, bias, ours=our_clip: ours(a, b, scale) + 0 * bias,
        )
        for how in WAYS:
            found[f"SigLipLoss, {strategy}, theirs {how}"] = theirs.SigLipLoss(dist_impl=how, **place), our_siglip
    for local, with_grad in itertools.product((False, True), repeat=2):  # all of these are exact by our name
        ours = compat.ClipLoss(local, with_grad, **place)
        found[f"compat ClipLoss, {local}, {with_grad}"] = (
            lambda a, b, scale, bias: clip(a, b, scale) + 0 * bias,
            lambda a, b, scale, bias, ours=ours: ours(a, b, scale) + 0 * bias,
        )
    for how in WAYS:
        found[f"compat SigLipLoss, {how}"] = tuple(x.SigLipLoss(dist_impl=how, **place) for x in (theirs, compat))
    return found


def stepped(loss: Loss, images: Tensor, texts: Tensor) -> dict[str, Tensor]:
    """The mean loss of the processes, and the gradients that all of them get."""
    model = DistributedDataParallel(Towers())
    mine = loss(*model(images, texts))
    mine.backward()
    mean = mine.detach().clone()
    dist.all_reduce(mean)
    return {"loss": mean / dist.get_world_size(), **{name: x.grad for name, x in model.module.named_parameters()}}


def process(rank: int, world: int, folder: str) -> None:
    torch.set_num_threads(1)
    meeting = dict(init_method=f"file://{folder}/meet", timeout=timedelta(seconds=60))
    dist.init_process_group("gloo", rank=rank, world_size=world, **meeting)
    generator = torch.Generator().manual_seed(1)
    batch = [torch.randn(N, size, generator=generator, dtype=torch.float64).chunk(world)[rank] for size in (5, 4)]
    found = {name: [stepped(loss, *batch) for loss in pair] for name, pair in both(rank, world).items()}
    torch.save(found, Path(folder) / f"{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()
