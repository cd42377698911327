"""Losses over the processes of a group equal those of one process with the whole batch, and so do their gradients."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.multiprocessing
from torch import Tensor
from whole_and_parts import CASES, DTYPES, Case, N, computed, process

from fastssl import losses


@pytest.mark.parametrize("world", [1, 2, 4])
def test_the_mean_over_processes_is_the_loss_of_the_whole_batch(world: int, tmp_path: Path) -> None:
    torch.multiprocessing.spawn(process, (world, str(tmp_path)), nprocs=world)
    for dtype in DTYPES:
        by_rank = [torch.load(tmp_path / f"{dtype}.{rank}.pt") for rank in range(world)]
        for name, case in CASES.items():
            want = whole(case, torch.float64)
            found = together([each[name] for each in by_rank], want)
            for i, (got, exact) in enumerate(zip(found, want, strict=True)):
                if dtype == torch.float64:
                    torch.testing.assert_close(got, exact, msg=lambda m, n=name, i=i: f"{n}, {i}: {m}")
                else:
                    assert_as_good_as_one_process(got, whole(case, dtype)[i], exact, f"{name}, {i}")


def whole(case: Case, dtype: torch.dtype) -> list[Tensor]:
    loss, gradients = computed(case, None, torch.clone, dtype)
    return [loss, *gradients]


def together(parts: list[tuple[Tensor, list[Tensor]]], whole: list[Tensor]) -> list[Tensor]:
    """The mean loss of the processes, and the gradients of the whole batch, in the shapes of ``whole``."""
    found = [torch.stack([loss for loss, _ in parts]).mean()]
    for like, *gradients in zip(whole[1:], *(gradients for _, gradients in parts), strict=True):
        # each process's gradient is of the sum over processes: the mean is what DistributedDataParallel takes
        mine = [gradient / len(parts) for gradient in gradients]
        found.append(torch.cat(mine) if len(like) == N else torch.stack(mine).sum(0))
    return found


def assert_as_good_as_one_process(got: Tensor, rival: Tensor, exact: Tensor, name: str) -> None:
    """At most twice its error in the same dtype, both against float64."""
    error, rival_error = ((x.double() - exact).abs().max().item() for x in (got, rival))
    chance = torch.finfo(torch.bfloat16).eps * max(exact.abs().max().item(), 1 / N)
    assert error <= 2 * rival_error + chance, (name, error, rival_error)


def test_a_group_before_there_is_one_is_refused() -> None:
    z = torch.randn(4, 3)
    with pytest.raises(RuntimeError, match=r"NTXent: a group was given, and torch\.distributed is not initialised"):
        losses.NTXent(0.5, group="world")(z, z)
    with pytest.raises(ValueError, match="InfoNCE: group must be a process group, \"world\" or None; got 'all'"):
        losses.InfoNCE(0.5, group="all")(z, z)
    with pytest.raises(ValueError, match='VICReg: group must be a process group, "world" or None; got True'):
        losses.VICReg(group=True)(z, z)
