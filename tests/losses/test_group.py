"""Losses over the processes of a group equal those of one process with the whole batch, and so do their gradients."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.multiprocessing
from each_process import WRAPPERS, process
from torch import Tensor
from whole_and_parts import CASES, DTYPES, EXACT, Case, N, computed, facebooks_training, inputs, learnt_by, left_behind

from fastssl import losses


@pytest.mark.slow
@pytest.mark.parametrize("world", [1, 2, 4])
def test_several_processes_do_what_one_does_with_the_whole_batch(world: int, tmp_path: Path) -> None:
    torch.multiprocessing.spawn(process, (world, str(tmp_path)), nprocs=world)

    def by_rank(name: str) -> list:
        return [torch.load(tmp_path / f"{name}.{rank}.pt") for rank in range(world)]

    for dtype in DTYPES:
        assert_the_mean_is_the_loss_of_the_whole_batch(by_rank(str(dtype)), dtype)
    for wrapper in WRAPPERS:
        assert_parameters_get_the_gradient_of_the_whole_batch(by_rank(wrapper), wrapper)
    torch.manual_seed(0)  # queues and centers, in the order of the ranks; each process began with another queue
    assert_all_are(by_rank("state"), left_behind(None, torch.clone))
    torch.manual_seed(0)
    assert_all_are(by_rank("facebook"), facebooks_training(torch.clone, lambda model: model))


def assert_the_mean_is_the_loss_of_the_whole_batch(parts: list[dict], dtype: torch.dtype) -> None:
    for name, case in CASES.items():
        want = whole(case, torch.float64)
        found = together([each[name] for each in parts], want)
        for i, (got, exact) in enumerate(zip(found, want, strict=True)):
            if dtype == torch.float64:
                torch.testing.assert_close(got, exact, **EXACT, msg=lambda m, n=name, i=i: f"{n}, {i}: {m}")
            else:
                assert_as_good_as_one_process(got, whole(case, dtype)[i], exact, f"{name}, {i}")


def assert_parameters_get_the_gradient_of_the_whole_batch(parts: list[dict], wrapper: str) -> None:
    for name, case in CASES.items():
        want = learnt_by(case, None, torch.clone, lambda model: model)
        for found in parts:
            for got, exact in zip(found[name], want, strict=True):
                torch.testing.assert_close(got, exact, **EXACT, msg=lambda m, n=name: f"{n}, {wrapper}: {m}")


def assert_all_are(found: list[dict[str, Tensor]], want: dict[str, Tensor]) -> None:
    for each in found:
        assert each.keys() == want.keys()
        for name, exact in want.items():
            torch.testing.assert_close(each[name], exact, **EXACT, msg=lambda m, n=name: f"{n}: {m}")


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


@pytest.mark.parametrize("name", [name for name in CASES if "'s" not in name and "_func" not in name])
def test_a_group_before_there_is_one_is_refused(name: str) -> None:
    owner, case = name.partition(",")[0], CASES[name]
    with pytest.raises(RuntimeError, match=rf"^{owner}: a group was given, and torch\.distributed is not initialised"):
        case.make("world")(*inputs(case))


def test_another_word_for_a_group_is_refused() -> None:
    z = torch.randn(4, 3)
    with pytest.raises(ValueError, match="InfoNCE: group must be a process group, \"world\" or None; got 'all'"):
        losses.InfoNCE(0.5, group="all")(z, z)
    with pytest.raises(ValueError, match='VICReg: group must be a process group, "world" or None; got True'):
        losses.VICReg(group=True)(z, z)
