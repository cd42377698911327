"""Losses over the processes of a group equal those of one process with the whole batch, and so do their gradients."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.multiprocessing
from whole_and_parts import CASES, N, computed, process

from fastssl import losses


@pytest.mark.parametrize("world", [1, 2, 4])
def test_the_mean_over_processes_is_the_loss_of_the_whole_batch(world: int, tmp_path: Path) -> None:
    torch.multiprocessing.spawn(process, (world, str(tmp_path)), nprocs=world)
    by_rank = [torch.load(tmp_path / f"{rank}.pt") for rank in range(world)]
    for name, case in CASES.items():
        want, gradients = computed(case, None, torch.clone)
        parts = [found[name] for found in by_rank]
        torch.testing.assert_close(
            torch.stack([loss for loss, _ in parts]).mean(), want, msg=lambda m, n=name: f"{n}: {m}"
        )
        for i, gradient in enumerate(gradients):
            # each process's gradient is of the sum over processes: the mean is what DistributedDataParallel takes
            mine = [found[i] / world for _, found in parts]
            got = torch.cat(mine) if len(gradient) == N else torch.stack(mine).sum(0)
            torch.testing.assert_close(got, gradient, msg=lambda m, n=name, i=i: f"{n}, input {i}: {m}")


def test_a_group_before_there_is_one_is_refused() -> None:
    z = torch.randn(4, 3)
    with pytest.raises(RuntimeError, match=r"NTXent: a group was given, and torch\.distributed is not initialised"):
        losses.NTXent(0.5, group="world")(z, z)
    with pytest.raises(ValueError, match="InfoNCE: group must be a process group, \"world\" or None; got 'all'"):
        losses.InfoNCE(0.5, group="all")(z, z)
