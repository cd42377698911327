"""Steps of training by lightly's names and by ours: run by test_beside_lightly.py in processes of its own."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from benchmarks import rivals
from fastssl.compat import lightly

N, D, K = 8, 6, 16  # samples of the whole batch, features, prototypes or keys in the bank, which two batches fill


def simclr(library: Any) -> tuple[nn.Module, Callable[..., Tensor]]:
    return nn.Module(), library.NTXentLoss(0.2, gather_distributed=True)


def moco(library: Any) -> tuple[nn.Module, Callable[..., Tensor]]:
    loss = library.NTXentLoss(0.2, (K, D), gather_distributed=True).double()
    generator = torch.Generator().manual_seed(7)
    loss.memory_bank.bank = torch.randn(K, D, generator=generator, dtype=torch.float64)
    return loss.memory_bank, lambda a, b: loss(a, b.detach()) + 0 * b.sum()


def dino(library: Any) -> tuple[nn.Module, Callable[..., Tensor]]:
    # temperatures that float32, in which theirs are, holds
    loss = library.DINOLoss(D, teacher_temp=0.0625, student_temp=0.125).double()
    return loss, lambda a, b: loss([a.detach(), b.detach()], [a, b, a * b])


LOSSES = {"simclr": simclr, "moco": moco, "dino": dino}


def stepped(make: Callable[[Any], tuple[nn.Module, Callable[..., Tensor]]], library: Any, rank: int, world: int) -> Any:
    """After three steps: mean losses of the processes, gradients, and what the loss remembers."""
    torch.manual_seed(0)
    model = DistributedDataParallel(nn.Sequential(nn.Linear(5, D), nn.Tanh()).double())
    memory, loss = make(library)
    generator = torch.Generator().manual_seed(1)
    found = []
    for _ in range(3):
        views = torch.randn(2, N, 5, generator=generator, dtype=torch.float64).chunk(world, dim=1)[rank]
        mine = loss(*model(views.flatten(0, 1)).chunk(2))
        mine.backward()
        mean = mine.detach().clone()
        dist.all_reduce(mean)
        found += [mean / world, *(x.grad.clone() for x in model.parameters())]
        model.zero_grad()
    return found + [x.clone() for _, x in memory.named_buffers()]


def shuffled(library: Any, rank: int) -> list[Tensor]:
    torch.manual_seed(5)
    batch = torch.randn(4, 3) + rank
    mixed, order = library.batch_shuffle(batch, distributed=True)
    return [mixed, order, library.batch_unshuffle(2 * mixed, order, distributed=True), 2 * batch]


def process(rank: int, world: int, folder: str) -> None:
    torch.set_num_threads(1)
    meeting = dict(init_method=f"file://{folder}/meet", timeout=timedelta(seconds=60))
    dist.init_process_group("gloo", rank=rank, world_size=world, **meeting)
    theirs, their_functions = rivals.load("lightly.loss"), rivals.load("lightly.models.utils")
    found = {name: [stepped(make, x, rank, world) for x in (theirs, lightly)] for name, make in LOSSES.items()}
    found["batch_shuffle"] = [shuffled(library, rank) for library in (their_functions, lightly)]
    torch.save(found, Path(folder) / f"{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()
