from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fastssl.data import plans
from fastssl.data.images import ImageSet
from fastssl.data.loader import Loader
from fastssl.data.plans import simclr
from fastssl.data.sources import list_images
from fastssl.data.stream import StreamLoader
from fastssl.data.views import draw, make_views
from fastssl.errors import UserError


def grey(count: int, size: int = 4) -> ImageSet:
    """Images that can be told apart: image i has value i everywhere."""
    images = torch.arange(count, dtype=torch.uint8)[:, None, None, None].expand(-1, 3, size, size).contiguous()
    return ImageSet(images, None, (), tuple(map(str, range(count))), "test")


def order(loader: Loader, epoch: int, start: int = 0) -> list[list[int]]:
    plan = loader.plan
    return [
        (((v[:, 0, 0, 0] * plan.std[0]) + plan.mean[0]) * 255).round().int().tolist()
        for (v,) in loader.epoch(epoch, start)
    ]


def test_an_epoch_is_whole_batches_of_different_images() -> None:
    loader = Loader(grey(10), plans.eval(4), 3, seed=0)
    batches = order(loader, 0)
    assert loader.steps_per_epoch == len(batches) == 3
    assert {len(batch) for batch in batches} == {3}
    assert len({i for batch in batches for i in batch}) == 9


def test_every_image_takes_its_turn() -> None:
    loader = Loader(grey(10), plans.eval(4), 3, seed=0)
    assert {i for epoch in range(20) for batch in order(loader, epoch) for i in batch} == set(range(10))


def test_the_order_changes_with_the_epoch_and_the_seed() -> None:
    orders = [
        order(Loader(grey(32), plans.eval(4), 8, seed), epoch) for seed, epoch in ((0, 0), (0, 1), (1, 0), (1, 1))
    ]
    assert all(a != b for i, a in enumerate(orders) for b in orders[:i])


def test_a_run_resumed_in_mid_epoch_sees_what_an_uninterrupted_one_sees() -> None:
    data, plan = grey(24, size=12), simclr(8)
    whole = list(Loader(data, plan, 5, seed=7).epoch(3))
    resumed = list(Loader(data, plan, 5, seed=7).epoch(3, start_step=2))
    assert len(resumed) == len(whole) - 2
    for before, after in zip(whole[2:], resumed, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


@pytest.mark.gpu
def test_views_made_on_a_gpu_are_the_cpus() -> None:
    data, plan = grey(24, size=12), simclr(8)
    data.images.copy_(torch.randint(0, 256, data.images.shape))
    both = [Loader(data, plan, 5, seed=7, device=device).epoch(0) for device in ("cpu", "cuda")]
    for mine, theirs in zip(*both, strict=True):
        for a, b in zip(mine, theirs, strict=True):
            assert b.is_cuda
            torch.testing.assert_close(b.cpu(), a, rtol=0, atol=1e-3)


def test_augmentation_differs_between_steps_and_epochs() -> None:
    data = grey(1, size=8)
    data.images.copy_(torch.randint(0, 256, data.images.shape))
    loader = Loader(data, simclr(8), 1, seed=0)
    first, second = (next(loader.epoch(epoch))[0] for epoch in (0, 1))
    assert not torch.equal(first, second)
    twice = ImageSet(data.images.expand(2, -1, -1, -1), None, (), ("a", "b"), "test")
    one, other = Loader(twice, simclr(8), 1, seed=0).epoch(0)
    assert not torch.equal(one[0], other[0])


def test_ranks_see_images_of_their_own_and_draw_on_their_own() -> None:
    loaders = [Loader(grey(11), plans.eval(4), 2, 0, rank=rank, world=2) for rank in (0, 1)]
    for epoch in (0, 1):
        seen = [order(loader, epoch) for loader in loaders]
        assert [len(batches) for batches in seen] == [2, 2] == [loader.steps_per_epoch for loader in loaders]
        assert len({i for batches in seen for batch in batches for i in batch}) == 8
        alone = order(Loader(grey(11), plans.eval(4), 2, 0), epoch)  # they take turns at one process's batches
        assert alone[:4] == [batch for step in zip(*seen, strict=True) for batch in step]
        assert order(loaders[1], epoch, 1) == seen[1][1:]
    noise = torch.randint(0, 256, (1, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    same = ImageSet(noise.expand(4, -1, -1, -1), None, (), tuple("abcd"), "test")
    one, other = (next(Loader(same, simclr(16), 2, 0, rank=rank, world=2).epoch(0)) for rank in (0, 1))
    assert not torch.equal(one[0], other[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_views_of_another_type_and_layout_are_the_same_rounded(dtype: torch.dtype) -> None:
    data, plan = grey(6, size=12), simclr(8)
    loader = Loader(data, plan, 3, 0, dtype=dtype, channels_last=True)
    for found, plain in zip(loader.epoch(0), Loader(data, plan, 3, 0).epoch(0), strict=True):
        for view, want in zip(found, plain, strict=True):
            assert view.is_contiguous(memory_format=torch.channels_last)
            assert torch.equal(view, want.to(dtype))


def test_the_parameters_of_a_batch_can_be_drawn_again() -> None:
    data, plan = grey(6, size=12), simclr(8)
    loader = Loader(data, plan, 3, seed=4)
    ((step, chosen),) = loader.schedule.chosen(2, 1)
    params = draw(plan, (12, 12), loader.schedule.generator(2, step), count=3)
    (views,) = loader.epoch(2, 1)
    again = make_views(data.images[chosen], plan, torch.Generator(), params=params)
    assert all(torch.equal(a, b) for a, b in zip(views, again, strict=True))


def test_a_batch_may_be_the_whole_set() -> None:
    assert [len(batch) for batch in order(Loader(grey(5), plans.eval(4), 5, seed=0), 0)] == [5]


@pytest.mark.parametrize(
    ("batch", "seed", "message"),
    [
        (6, 0, "data set of 5 images to train on: give --batch_size 5 or less, or more images"),
        (0, 0, "at least 1"),
        (2, -1, "seed"),
    ],
)
def test_what_cannot_be_loaded_is_refused(batch: int, seed: int, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        Loader(grey(5), plans.eval(4), batch, seed)
    assert "\n" not in str(caught.value)


def test_a_source_without_images_is_said_to_have_none(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the data set has no images at all: give a source that holds some"):
        StreamLoader(list_images(tmp_path), plans.eval(4), 2, 0)


@pytest.mark.parametrize(
    ("rank", "world", "message"),
    [
        (2, 2, r"rank must be in \[0, 2\)"),
        (0, 3, "a batch of 2 for each of 3 processes is larger than the data set of 5 images"),
        (0, 6, "for each of 6 processes is larger than the data set of 5 images to train on: give more images"),
    ],
)
def test_ranks_that_cannot_be_are_refused(rank: int, world: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Loader(grey(5), plans.eval(4), 2, 0, rank=rank, world=world)
