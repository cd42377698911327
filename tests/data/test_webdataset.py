from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from dali_helpers import RAW, photo
from image_files import encode
from shard_files import grey, grey_shards, write_shard

from fastssl.data import plans
from fastssl.data.plans import simclr
from fastssl.data.webdataset import ShardLoader, Shards, ShardSchedule, list_shards
from fastssl.errors import UserError

pytest.importorskip("webdataset", reason="the package webdataset is not installed")

LOOK = replace(plans.eval(4), **RAW)


def values(loader: ShardLoader, epoch: int, start: int = 0) -> list[list[int]]:
    """Of images of one value each, those of each batch."""
    return [(view[:, 0, 0, 0] * 255).round().int().tolist() for (view,) in loader.epoch(epoch, start)]


def order(counts: tuple[int, ...], epoch: int = 0, **settings: int) -> list[int]:
    """All positions of an epoch, of the samples that make whole batches."""
    schedule = ShardSchedule(sum(counts), 1, 0, counts=counts, **settings)
    return [int(batch) for _, batch in schedule.chosen(epoch)]


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("counts", [(40,), (7, 3, 11, 2, 17), (1,) * 40])
def test_every_process_has_its_own_samples_and_as_many_steps(counts: tuple[int, ...], world: int) -> None:
    for epoch in (0, 1):
        dealt = []
        for rank in range(world):
            schedule = ShardSchedule(40, 3, 0, rank, world, counts=counts, readers=2, window=5)
            batches = [batch.tolist() for _, batch in schedule.chosen(epoch)]
            assert [len(batch) for batch in batches] == [3] * schedule.steps_per_epoch
            assert schedule.steps_per_epoch == 40 // (3 * world)
            dealt.append({position for batch in batches for position in batch})
            assert len(dealt[-1]) == 3 * schedule.steps_per_epoch
        assert len(set().union(*dealt)) == sum(map(len, dealt))
        assert set().union(*dealt) <= set(range(40))


def test_shards_are_shared_by_two_processes_at_most() -> None:
    counts = (10,) * 12
    owners: dict[int, set[int]] = {}
    for rank in range(4):
        schedule = ShardSchedule(120, 1, 0, rank, 4, counts=counts, readers=2, window=50)
        for _, batch in schedule.chosen(0):
            owners.setdefault(int(batch) // 10, set()).add(rank)
    assert all(len(found) == 1 for found in owners.values())  # for 12 shards of one size are dealt to 4


def test_without_shuffling_shards_are_read_from_front_to_back() -> None:
    found = order((5, 5, 5))
    assert sorted(found) == list(range(15))
    assert all(found[i : i + 5] == list(range(found[i], found[i] + 5)) for i in (0, 5, 10))
    assert {order((5, 5, 5), epoch)[0] for epoch in range(20)} == {0, 5, 10}


def test_several_shards_are_read_in_turns() -> None:
    found = order((5, 5, 5), readers=3)
    assert sorted(found) == list(range(15))
    for i in range(5):
        turn = found[3 * i : 3 * i + 3]
        assert sorted(x // 5 for x in turn) == [0, 1, 2]
        assert {x % 5 for x in turn} == {i}


@pytest.mark.parametrize("window", [1, 10, 200])
def test_a_sample_is_moved_by_the_window_at_most(window: int) -> None:
    found = order((1000,), window=window)
    moved = (torch.tensor(found) - torch.arange(1000)).abs()
    assert sorted(found) == list(range(1000))
    assert moved.max() <= window
    assert window == 1 or moved.double().mean() > window / 8


def test_the_order_changes_with_the_epoch_and_the_seed(tmp_path: Path) -> None:
    shards = list_shards(str(grey_shards(tmp_path, 8, 8, 8)))
    seen = [values(ShardLoader(shards, LOOK, 4, seed), epoch) for seed, epoch in ((0, 0), (0, 1), (1, 0), (1, 1))]
    assert all(sorted(x for batch in batches for x in batch) == list(range(24)) for batches in seen)
    assert all(a != b for i, a in enumerate(seen) for b in seen[:i])


def test_a_run_resumed_in_mid_epoch_sees_what_an_uninterrupted_one_sees(tmp_path: Path) -> None:
    for shard in range(3):
        images = {f"{i}.jpg": encode(photo(10 * shard + i, 36, 48 + 12 * (i % 3)), "JPEG") for i in range(5)}
        write_shard(tmp_path / f"{shard}.tar", images)
    shards, plan = list_shards(str(tmp_path)), simclr(24)
    whole = list(ShardLoader(shards, plan, 4, seed=7, threads=1).epoch(2))
    loader = ShardLoader(shards, plan, 4, seed=7, threads=3)
    next(loader.epoch(2))  # left in the middle
    resumed = list(loader.epoch(2, start_step=1))
    loader.close()
    assert (len(whole), len(resumed)) == (3, 2)
    for before, after in zip(whole[1:], resumed, strict=True):
        assert [view.shape for view in after] == [(4, 3, 24, 24)] * 2
        assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    other = next(ShardLoader(shards, plan, 4, seed=7).epoch(1))
    assert not torch.equal(other[0], whole[0][0])


def test_views_of_another_type_and_layout_are_the_same_rounded(tmp_path: Path) -> None:
    write_shard(tmp_path / "0.tar", {f"{i}.png": encode(photo(i)) for i in range(3)})
    shards, plan = list_shards(str(tmp_path)), simclr(24)
    (found,) = ShardLoader(shards, plan, 3, 0, dtype=torch.bfloat16, channels_last=True).epoch(0)
    (plain,) = ShardLoader(shards, plan, 3, 0).epoch(0)
    assert all(view.is_contiguous(memory_format=torch.channels_last) for view in found)
    assert all(torch.equal(view, want.bfloat16()) for view, want in zip(found, plain, strict=True))


def test_ranks_see_samples_of_their_own_and_draw_on_their_own(tmp_path: Path) -> None:
    shards = list_shards(str(grey_shards(tmp_path / "grey", 5, 9, 8)))
    seen = [{x for batch in values(ShardLoader(shards, LOOK, 5, 0, rank=r, world=2), 0) for x in batch} for r in (0, 1)]
    assert [len(part) for part in seen] == [10, 10]
    assert not seen[0] & seen[1]
    same = encode(photo(0))
    alike = list_shards(str(write_shard(tmp_path / "same" / "0.tar", {f"{i}.png": same for i in range(4)}).parent))
    one, other = (next(ShardLoader(alike, simclr(16), 2, 0, rank=r, world=2).epoch(0)) for r in (0, 1))
    assert not torch.equal(one[0], other[0])


@pytest.mark.filterwarnings("ignore:.*cannot be read")
def test_corrupt_samples_are_named_and_replaced_and_nothing_else_changes(tmp_path: Path) -> None:
    files = {f"{i:02}.png": grey(i) for i in range(12)}
    clean = values(ShardLoader(list_shards(str(write_shard(tmp_path / "a" / "0.tar", files).parent)), LOOK, 4, 0), 0)
    files |= {"03.png": b"no image", "08.png": grey(8)[:-30]}
    shards = list_shards(str(write_shard(tmp_path / "b" / "0.tar", files).parent))
    loader = ShardLoader(shards, LOOK, 4, 0, max_skipped=0.2)
    found, again = values(loader, 0), values(loader, 0)
    resumed = values(ShardLoader(shards, LOOK, 4, 0, max_skipped=0.2), 0, 1)
    assert found == again == [found[0], *resumed]
    assert {item.name for item in loader.skipped} == {"0.tar/03.png", "0.tar/08.png"}
    for mine, theirs in zip(found, clean, strict=True):
        assert all(a == b for a, b in zip(mine, theirs, strict=True) if b not in (3, 8))
        assert not {3, 8} & set(mine)


@pytest.mark.filterwarnings("ignore:.*cannot be read")
def test_samples_that_an_index_promised_are_named(tmp_path: Path) -> None:
    shards = list_shards(str(grey_shards(tmp_path, 6, 6)))
    content = (tmp_path / "00.tar").read_bytes()
    (tmp_path / "00.tar").write_bytes(content[: 4 * 1024])
    loader = ShardLoader(shards, LOOK, 6, 0, max_skipped=0.5)
    assert not {4, 5} & {x for batch in values(loader, 0) for x in batch}
    assert {item.name for item in loader.skipped} == {"00.tar/sample 4", "00.tar/sample 5"}
    assert all("missing, though counted before: cut short" in item.reason for item in loader.skipped)
    longer = Shards(shards.paths, (4, 7))
    loader = ShardLoader(longer, LOOK, 11, 0)
    values(loader, 0)
    assert [item.reason for item in loader.skipped] == ["missing, though counted before: the shard has 6 samples"]


@pytest.mark.filterwarnings("ignore:.*cannot be read")
def test_too_many_corrupt_samples_end_the_epoch(tmp_path: Path) -> None:
    files = {f"{i}.png": b"no image" if i < 2 else grey(i) for i in range(8)}
    shards = list_shards(str(write_shard(tmp_path / "0.tar", files).parent))
    with pytest.raises(UserError, match="too many unreadable files: 2 so far, 1 of 8 allowed"):
        list(ShardLoader(shards, LOOK, 8, 0).epoch(0))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"readers": 0}, "readers must be at least 1"),
        ({"window": 0}, "window must be at least 1"),
        ({"world": 2}, "a batch of 3 for each of 2 processes is larger than the data set of 5 images"),
        ({"rank": 1}, r"rank must be in \[0, 1\)"),
    ],
)
def test_what_cannot_be_used_is_refused(settings: dict[str, int], message: str, tmp_path: Path) -> None:
    shards = list_shards(str(grey_shards(tmp_path, 5)))
    with pytest.raises(UserError, match=message):
        ShardLoader(shards, LOOK, 3, 0, **settings)  # type: ignore[arg-type]
