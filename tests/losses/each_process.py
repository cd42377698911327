"""What each process does that test_group.py starts: its part of every case, and what can be asserted there."""

from __future__ import annotations

import copy
import pickle
import re
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from whole_and_parts import CASES, DTYPES, EXACT, D, N, computed, facebooks_training, inputs, learnt_by, left_behind

from fastssl import losses
from fastssl.compat import lightly, solo
from fastssl.compat.facebook import dino, moco
from fastssl.losses import _group, _ring
from fastssl.momentum import EMA

WRAPPERS = {"DistributedDataParallel": DistributedDataParallel, "FSDP2": fully_shard}


def assert_uneven_batches_are_refused(rank: int, world: int) -> None:
    rows = torch.randn(3 if rank == 0 else 2, D)
    others = ", ".join(map(str, range(1, world)))
    told = (
        "NTXent: every process must have as many samples, of one kind, and the same settings; got "
        "(3, 6) float32, (3, 6) float32, strategy='gather', normalized=False, temperature=0.2 on rank 0; "
        "(2, 6) float32, (2, 6) float32, strategy='gather', normalized=False, temperature=0.2 on "
        f"rank{'s' if world > 2 else ''} {others} (of batches that differ in size, leave out the last: drop_last=True)"
    )
    with pytest.raises(ValueError, match=re.escape(told)):
        losses.NTXent(0.2, group="world")(rows, rows)
    for name in ("batch_shuffle", "batch_unshuffle"):
        arguments = (rows,) if name == "batch_shuffle" else (rows, torch.arange(2 * world + 1))
        with pytest.raises(ValueError, match=f"^{name}: every process must have as many samples"):
            getattr(lightly, name)(*arguments, distributed=True)


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
    on_all = "world"
    calls = (
        ("NTXent: temperature", lambda: losses.nt_xent_loss(*rows, temperature=wrong, group=on_all)),
        ("InfoNCE: temperature", lambda: losses.info_nce_loss(*rows, temperature=wrong, group=on_all)),
        ("ClipLoss: logit_scale", lambda: losses.clip_loss(*rows, logit_scale=wrong, group=on_all)),
        (
            "SigLipLoss: logit_bias",
            lambda: losses.siglip_loss(*rows, logit_scale=1.0, logit_bias=wrong, group=on_all),
        ),
        ("DINOLoss: teacher_temp", lambda: losses.DINOLoss(D, group=on_all)(rows, rows, teacher_temp=wrong)),
        ("DINOLoss: teacher_temp", lambda: lightly.DINOLoss(D)(list(rows), list(rows), wrong)),
    )
    for told, call in calls:
        with pytest.raises(ValueError, match=rf"^{told} must be finite.*; got nan \(on rank {world - 1}\)"):
            call()
    with pytest.raises(
        ValueError, match=rf"^MoCoLoss: the queue has 5 keys, and the batch .* {3 * world}: .*\(on ranks 0"
    ):
        losses.MoCoLoss(0.2, dim=D, length=5, group=on_all)(*rows)
    crops = rows.flatten(0, 1)
    with pytest.raises(ValueError, match=rf"^DINOLoss: epoch must be in \[0, 4\); got 9 \(on rank {world - 1}\)"):
        dino.DINOLoss(D, 2, 0.04, 0.07, 2, 4)(crops, crops, 9 if rank == world - 1 else 0)
    with pytest.raises(ValueError, match=f"strategy='ring', .* on rank {world - 1}"):
        losses.nt_xent_loss(*rows, temperature=0.5, group="world", strategy="ring" if rank == world - 1 else "gather")


def assert_settings_that_differ_are_told(rank: int, world: int) -> None:
    """The mean of losses with two temperatures is the loss of no batch."""
    x, own, on_all = torch.randn(2, 3, D), 0.25 if rank == 0 else 0.5, "world"
    labels = torch.arange(3)
    calls = {
        "NTXent": lambda: losses.NTXent(own, group=on_all)(*x),
        "InfoNCE": lambda: losses.InfoNCE(own, group=on_all)(*x),
        "ClipLoss": lambda: losses.ClipLoss(group=on_all)(*x, own),
        "SigLipLoss": lambda: losses.SigLipLoss(group=on_all)(*x, 1.0, own),
        "CPCLoss": lambda: losses.CPCLoss(own, group=on_all)(x, x),
        "SupCon": lambda: losses.SupCon(own, group=on_all)(x[0], labels),
        "BarlowTwins": lambda: losses.BarlowTwins(own, group=on_all)(*x),
        "VICReg": lambda: losses.VICReg(own, group=on_all)(*x),
        "MoCoLoss": lambda: losses.MoCoLoss(own, dim=D, length=64, group=on_all)(*x),
        "DINOLoss": lambda: losses.DINOLoss(D, student_temp=own, group=on_all)(x, x),
        "KoLeo": lambda: losses.KoLeo(normalized=rank == 0, group=on_all)(x[0]),
        "NTXentLoss": lambda: lightly.NTXentLoss(own, gather_distributed=True)(*x),
        "simclr_loss_func": lambda: solo.simclr_loss_func(x[0], labels, own),
    }
    for name, call in calls.items():
        differ = r"normalized=True on rank 0; .*normalized=False" if name == "KoLeo" else r"=0\.25.* on rank 0; .*=0\.5"
        told = {"NTXentLoss": "NTXent"}.get(name, name)
        with pytest.raises(
            ValueError, match=f"^{told}.*: every process must have .* the same settings; got .*{differ}"
        ):
            call()


def assert_buffers_and_schedules_that_differ_are_told(rank: int, world: int) -> None:
    x, first, on_all = torch.randn(2, 3, D), rank == 0, "world"
    crops, own = x.flatten(0, 1), 0.25 if rank == 0 else 0.5

    def of_facebook(length: int) -> Tensor:
        return moco.MoCo(lambda num_classes: torch.nn.Identity(), D, length).loss(*x)

    def cast(module: torch.nn.Module) -> torch.nn.Module:
        return module.double() if first else module

    calls = {
        "queue=(32, 6)": lambda: losses.MoCoLoss(0.2, dim=D, length=64 if first else 32, group=on_all)(*x),
        "queue=(6, 32)": lambda: of_facebook(64 if first else 32),
        "bank=(32, 6)": lambda: lightly.NTXentLoss(0.2, (64 if first else 32, D), True)(x[0].requires_grad_(), x[1]),
        "queue=(64, 6) float64": lambda: cast(losses.MoCoLoss(0.2, dim=D, length=64, group=on_all))(*x),
        "center=(6) float64": lambda: cast(losses.DINOLoss(D, group=on_all))(x, x),
        "teacher_temp=0.25": lambda: dino.DINOLoss(D, 2, own, 0.7, 2, 4)(crops, crops, 0),
        "teacher_temp=0.5": lambda: solo.DINOLoss(D, own, 0.7, 2, 4)(crops, crops),
        "center_momentum=0.5": lambda: lightly.DINOLoss(D, center_momentum=own)(list(x), list(x)),
        "center_momentum=0.25": lambda: losses.DINOLoss(D, center_momentum=own, group=on_all).update_center(x),
    }
    for told, call in calls.items():
        with pytest.raises(ValueError, match=f"the same settings; got .*{re.escape(told)}"):
            call()


def assert_queues_are_alike_again_after_a_state_dict(rank: int, world: int) -> None:
    """Each process loads another; and a used module beside new ones is told of, and does not wait."""
    rows = torch.randn(2, 3, D, generator=torch.Generator().manual_seed(rank))
    used = losses.MoCoLoss(0.2, dim=D, length=64, group="world")
    used(*rows)
    torch.manual_seed(rank)
    used.load_state_dict(losses.MoCoLoss(0.2, dim=D, length=64).state_dict())
    used(*rows)
    everyones = [torch.empty_like(used.queue) for _ in range(world)]
    dist.all_gather(everyones, used.queue)
    assert all(torch.equal(used.queue, other) for other in everyones)
    resumed = copy.deepcopy(used) if rank == 0 else losses.MoCoLoss(0.2, dim=D, length=64, group="world")
    with pytest.raises(ValueError, match=r"queue_is_shared=True on rank 0; .*queue_is_shared=False on rank"):
        resumed(*rows)


def assert_a_bank_is_read_by_one_process_alone(rank: int, world: int) -> None:
    """As in lightly: what writes nothing, under no_grad, communicates nothing."""
    if rank == 0:
        with torch.no_grad():
            lightly.NTXentLoss(0.2, (16, D), gather_distributed=True)(*torch.randn(2, 3, D))
            lightly.MemoryBankModule((16, D), gather_distributed=True)(torch.randn(3, D))
    dist.barrier()


def assert_no_second_derivative_over_a_group(rank: int, world: int) -> None:
    rows = torch.randn(2, 3, D, generator=torch.Generator().manual_seed(rank))
    for strategy in ("gather", "ring"):
        settings = dict(group="world", strategy=strategy)
        for loss in (losses.InfoNCE(0.2, **settings), losses.NTXent(0.2, **settings), losses.SigLipLoss(**settings)):
            leaf = rows[0].clone().requires_grad_()
            scale = () if not isinstance(loss, losses.SigLipLoss) else (2.0, -1.0)
            (first,) = torch.autograd.grad(loss(leaf, rows[1], *scale), leaf, create_graph=True)
            with pytest.raises(RuntimeError, match=r"second derivative.* not supported|differentiate twice"):
                first.square().sum().backward()


def assert_a_loss_with_its_group_is_copied_and_shown(rank: int, world: int) -> None:
    group, alone = dist.new_group(list(range(world))), dist.new_group([0])
    loss = losses.MoCoLoss(0.2, dim=D, length=16, group=group)
    assert copy.deepcopy(loss).group is group
    assert f"normalized=False, group of {world} processes" in repr(loss)
    assert EMA(loss, 0.9).module.group is group
    with pytest.raises(TypeError, match="cannot be pickled: save its state_dict"):
        pickle.dumps(loss)
    elsewhere = "group of 1 processes" if rank == 0 else "group that this process is not of"
    assert elsewhere in repr(losses.KoLeo(group=alone))
    assert repr(losses.NTXent(0.2, group="world")).endswith("normalized=False, group='world', strategy='gather')")
    with pytest.raises(ValueError, match='NTXent: group must be a process group, "world" or None; got 5'):
        losses.NTXent(0.2, group=5)


def assert_an_average_follows_a_sharded_model(rank: int, world: int) -> None:
    """To the bit as of the whole model, though calls gather the weights between updates."""
    torch.manual_seed(0)
    plain = torch.nn.Sequential(torch.nn.Linear(D, 7), torch.nn.ReLU(), torch.nn.Linear(7, 4))
    sharded = copy.deepcopy(plain)
    averages = EMA(plain, 0.9), EMA(sharded, 0.9)
    with pytest.raises(TypeError, match=r"Sequential cannot be copied .*make the copy before fully_shard"):
        EMA(fully_shard(copy.deepcopy(plain)), 0.9)
    fully_shard(sharded)
    fully_shard(averages[1].module)
    x, results = torch.randn(8, D), []
    for model, average in zip((plain, sharded), averages, strict=True):
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        for _ in range(3):
            optimizer.zero_grad()
            (model(x) - average(x)).square().sum().add(model(x).square().sum()).backward()
            optimizer.step()
            average.update(model)
        results.append(average(x))
    torch.testing.assert_close(results[1], results[0], rtol=1e-6, atol=1e-7)
    with pytest.raises(ValueError, match=r"got 0.weight \(7, 6\) where the copy has 0.weight"):
        averages[1].update(plain)


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


def assert_the_ring_gathers_nothing(rank: int, world: int) -> None:
    """Of all rows, a process holds blocks as long as its own."""
    rows = torch.randn(2, 3, D, generator=torch.Generator().manual_seed(rank))
    passed_on, lengths = _ring._passed_on, set()

    def watched(tensors: list[Tensor], group: dist.ProcessGroup) -> list[Tensor]:
        lengths.update(map(len, tensors))
        return passed_on(tensors, group)

    def refused(*_: object) -> None:
        pytest.fail("gathered")

    settings = dict(group="world", strategy="ring")
    calls: tuple[Callable[[Tensor], Tensor], ...] = (
        lambda x: losses.InfoNCE(0.2, symmetric=True, **settings)(*x),
        lambda x: losses.NTXent(0.2, **settings)(*x),
        lambda x: losses.ClipLoss(**settings)(*x, 5.0),
        lambda x: losses.SigLipLoss(**settings)(*x, 5.0, -2.0),
        lambda x: losses.CPCLoss(0.2, **settings)(x[None, 0], x[None, 1]),
    )
    for call, count in zip(calls, (3, 6, 3, 3, 3), strict=True):  # NT-Xent's block has both views
        lengths.clear()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(_ring, "_passed_on", watched)
            patch.setattr(_group, "gathered", refused)
            call(rows.clone().requires_grad_()).backward()
        assert lengths == {count}


def assert_a_group_may_be_a_part_of_the_processes(rank: int, world: int) -> None:
    """Two groups, each with a batch of its own; and none takes a process of the other."""
    half = world // 2
    groups = [dist.new_group(list(range(first, first + half))) for first in (0, half)]
    which, place = divmod(rank, half)
    z = torch.randn(2, N, D, generator=torch.Generator().manual_seed(which), dtype=torch.float64)
    mine = z.chunk(half, dim=1)[place]
    for strategy in ("gather", "ring"):
        whole, part = z.clone().requires_grad_(), mine.clone().requires_grad_()
        want, got = losses.NTXent(0.2)(*whole), losses.NTXent(0.2, group=groups[which], strategy=strategy)(*part)
        want.backward()
        got.backward()
        mean = got.detach().clone()
        dist.all_reduce(mean, group=groups[which])
        torch.testing.assert_close(mean / half, want.detach(), **EXACT)
        torch.testing.assert_close(part.grad / half, whole.grad.chunk(half, dim=1)[place], **EXACT)
    torch.manual_seed(rank)
    queue = losses.MoCoLoss(0.2, dim=D, length=N + 3, group=groups[which])
    queue(*mine)
    torch.manual_seed(half * which)  # of the group's first process
    alone = losses.MoCoLoss(0.2, dim=D, length=N + 3)
    alone(*z)
    torch.testing.assert_close(queue.queue, alone.queue)
    with pytest.raises(ValueError, match="NTXent: this process is not of the group that was given"):
        losses.NTXent(0.2, group=groups[1 - which])(*mine)


def process(rank: int, world: int, folder: str) -> None:
    """One process: all cases on its part, saved as ``WHAT.RANK.pt``."""
    torch.set_num_threads(1)
    meeting = dict(init_method=f"file://{folder}/meet", timeout=timedelta(seconds=60))
    dist.init_process_group("gloo", rank=rank, world_size=world, **meeting)

    def part(x: Tensor) -> Tensor:
        return x.chunk(world)[rank].clone()

    for dtype in DTYPES:
        found = {name: computed(case, "world", part, dtype) for name, case in CASES.items()}
        torch.save(found, Path(folder) / f"{dtype}.{rank}.pt")
    for wrapper, wrap in WRAPPERS.items():
        gradients = {name: learnt_by(case, "world", part, wrap) for name, case in CASES.items()}
        torch.save(gradients, Path(folder) / f"{wrapper}.{rank}.pt")
    torch.manual_seed(rank)  # each process draws another queue
    torch.save(left_behind("world", part), Path(folder) / f"state.{rank}.pt")
    torch.manual_seed(rank)
    torch.save(facebooks_training(part, DistributedDataParallel), Path(folder) / f"facebook.{rank}.pt")
    if world > 1:
        assert_uneven_batches_are_refused(rank, world)
        assert_bad_input_on_one_process_is_told_on_all(rank, world)
        assert_bad_numbers_on_one_process_are_told_on_all(rank, world)
        assert_settings_that_differ_are_told(rank, world)
        assert_buffers_and_schedules_that_differ_are_told(rank, world)
        assert_queues_are_alike_again_after_a_state_dict(rank, world)
        assert_a_bank_is_read_by_one_process_alone(rank, world)
        assert_no_second_derivative_over_a_group(rank, world)
        assert_a_loss_with_its_group_is_copied_and_shown(rank, world)
        assert_an_average_follows_a_sharded_model(rank, world)
        assert_a_scale_may_be_any_number(rank, world)
        assert_gradients_only_where_asked(rank, world)
        assert_the_ring_gathers_nothing(rank, world)
        assert_a_group_may_be_a_part_of_the_processes(rank, world)
    dist.barrier()
    dist.destroy_process_group()
