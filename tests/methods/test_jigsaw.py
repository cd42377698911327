from __future__ import annotations

import math
from itertools import permutations

import pytest
import torch
from torch import Tensor, nn

from fastssl.errors import UserError
from fastssl.methods.jigsaw import Jigsaw, JigsawConfig, permutation_set


class Means(nn.Module):
    """An encoder that returns the mean of each channel: (N, 3, H, W) to (N, 3)."""

    feature_dim = 3

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3))


def noise(batch: int, size: int, seed: int = 0) -> Tensor:
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(seed))


def places(tiles: Tensor, image: Tensor, cells: list[int]) -> Tensor:
    """(9, C, 2): where in its cell each channel of each of (9, C, h, h) tiles was cut of a (C, H, H) image."""
    side, cell = tiles.shape[-1], image.shape[-1] // 3
    first = (image.shape[-1] - 3 * cell) // 2
    found = []
    for tile, number in zip(tiles, cells, strict=True):
        top, left = first + number // 3 * cell, first + number % 3 * cell
        windows = image[:, top : top + cell, left : left + cell].unfold(1, side, 1).unfold(2, side, 1)
        windows = (windows - windows.mean((3, 4), keepdim=True)) / windows.std((3, 4), correction=0, keepdim=True)
        for one, of in zip(tile, windows, strict=True):
            (place,) = ((of - one).abs().amax((2, 3)) < 1e-3).nonzero().tolist()
            found.append(place)
    return torch.tensor(found).view(9, -1, 2)


def distances(orders: Tensor) -> Tensor:
    """Hamming distances between all pairs."""
    return (orders[:, None] != orders).sum(2)[torch.ones(len(orders), len(orders)).tril(-1).bool()]


@pytest.mark.parametrize(("count", "least", "mean"), [(8, 9, 8.99), (100, 6, 8.07)])
def test_orders_are_permutations_far_from_each_other(count, least, mean):
    orders = permutation_set(count)
    assert orders.shape == (count, 9)
    assert orders.sort(dim=1).values.tolist() == [list(range(9))] * count
    apart = distances(orders)
    assert apart.min() == least
    assert apart.double().mean() > mean  # the paper's set of 100 has 8.08, and a minimum of 2


def test_the_set_is_the_same_always_and_a_smaller_one_its_beginning():
    assert torch.equal(permutation_set(20), permutation_set(50)[:20])
    permutation_set(20).zero_()
    assert permutation_set(20).any()


def test_each_next_order_is_the_farthest_of_all():
    orders = permutation_set(11)
    every = torch.tensor(list(permutations(range(9))), dtype=torch.uint8)
    for count in (1, 2, 9, 10):
        apart = (every[:, None] != orders[:count]).sum(2)
        least = apart.min(1).values
        farthest = apart[least == least.max()].sum(1).max()
        own = (orders[count] != orders[:count]).sum(1)
        assert (own.min(), own.sum()) == (least.max(), farthest)


def test_a_state_keeps_its_own_set(build):
    method, other = build("jigsaw", permutations=5), build("jigsaw", permutations=5)
    state = method.state_dict()
    state["permutations"] = state["permutations"].flip(0)
    other.load_state_dict(state)
    assert torch.equal(other.permutations, method.permutations.flip(0))
    assert torch.equal(method.permutations, permutation_set(5))


def test_tiles_come_from_the_cells_of_the_order_anywhere_in_them():
    method = Jigsaw(Means(), JigsawConfig(channel_shift=0.0))
    images, orders = noise(4, 225), permutation_set(4)
    torch.manual_seed(0)
    puzzles = method.puzzles(images, orders)
    assert puzzles.shape == (4, 9, 3, 64, 64)
    found = torch.stack(
        [places(tiles, image, order.tolist()) for tiles, image, order in zip(puzzles, images, orders, strict=True)]
    )
    assert bool((found == found[:, :, :1]).all())  # without a shift, channels lie upon each other
    assert (found.min(), found.max()) == (0, 11)
    assert len(found[:, :, 0].flatten(0, 1).unique(dim=0)) > 20


def test_channels_are_shifted_by_two_pixels_at_most_at_the_papers_size():
    method = Jigsaw(Means(), JigsawConfig())
    images, orders = noise(2, 225), permutation_set(2)
    torch.manual_seed(0)
    puzzles = method.puzzles(images, orders)
    for tiles, image, order in zip(puzzles, images, orders, strict=True):
        found = places(tiles, image, order.tolist())
        between = found[:, 0] - found[:, 1]
        assert 2 < between.abs().max() <= 4  # each by two, towards each other
        assert found.min() >= 0
        assert found.max() <= 11


@pytest.mark.parametrize(("size", "side"), [(16, 4), (32, 9), (64, 18), (96, 27), (224, 63)])
def test_the_gap_follows_the_size(size, side):
    method = Jigsaw(Means(), JigsawConfig())
    assert method.puzzles(noise(1, size), torch.arange(9)[None]).shape == (1, 9, 3, side, side)


def test_each_tile_is_normalised_by_itself():
    puzzles = Jigsaw(Means(), JigsawConfig()).puzzles(noise(2, 48) * 7 + 3, permutation_set(2))
    assert puzzles.mean((3, 4)).abs().max() < 1e-4
    assert (puzzles.std((3, 4), correction=0) - 1).abs().max() < 1e-4


def test_the_encoder_sees_one_tile_at_a_time(build, views_of):
    method = build("jigsaw").eval()
    (images,) = views_of(method, batch=2, size=48)
    codes: list[Tensor] = []
    method.fc6.register_forward_hook(lambda _module, _inputs, output: codes.append(output))
    torch.manual_seed(0)
    method([images])
    changed = images.clone()
    changed[:, :, :16, :16] += noise(2, 16)  # the first cell
    torch.manual_seed(0)
    method([changed])
    before, after = (code.view(2, 9, -1) for code in codes)
    assert (before != after).any(2).sum(1).tolist() == [1, 1]


def test_loss_is_the_cross_entropy_of_the_drawn_order(build, monkeypatch):
    method = build("jigsaw", permutations=7)
    logits: list[Tensor] = []
    method.head.register_forward_hook(lambda _module, _inputs, output: logits.append(output))
    orders: list[Tensor] = []
    puzzles = method.puzzles
    monkeypatch.setattr(method, "puzzles", lambda images, order: orders.append(order) or puzzles(images, order))
    loss = method([noise(5, 24)])
    drawn = [method.permutations.tolist().index(order) for order in orders[0].tolist()]
    rows = logits[0].tolist()
    total = sum(math.log(sum(map(math.exp, row))) - row[which] for row, which in zip(rows, drawn, strict=True))
    assert loss.item() == pytest.approx(total / 5, rel=1e-5)
    right = sum(row.index(max(row)) == which for row, which in zip(rows, drawn, strict=True))
    assert method.metrics(0.0, 5) == {"pretext_accuracy": pytest.approx(right / 5), "chance": pytest.approx(1 / 7)}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"permutations": 1}, "permutations of jigsaw must be from 2 to 362880, all orders of 9 tiles; got 1"),
        ({"permutations": 362881}, "permutations of jigsaw must be from 2 to 362880"),
        ({"gap": -0.1}, r"gap of jigsaw must be a share in \[0, 1\]; got -0.1"),
        ({"channel_shift": math.nan}, "channel_shift of jigsaw must be a share"),
        ({"tile_dim": 0}, "tile_dim of jigsaw must be 1 or more; got 0"),
        ({"hidden_dim": -2}, "hidden_dim of jigsaw must be 1 or more; got -2"),
    ],
)
def test_refuses_settings_that_cannot_be(settings, message):
    with pytest.raises(UserError, match=message):
        JigsawConfig(**settings)


def test_refuses_images_too_small_for_its_tiles():
    with pytest.raises(UserError, match="jigsaw cuts 3 x 3 tiles of 3 pixels or more, and images of 8 pixels"):
        Jigsaw.view_plan(8)
    with pytest.raises(UserError, match="jigsaw cuts 3 x 3 tiles"):
        Jigsaw(Means(), JigsawConfig(gap=0.9))([noise(1, 24)])
