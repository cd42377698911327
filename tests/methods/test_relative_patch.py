from __future__ import annotations

import math
from collections import Counter

import pytest
import torch
from torch import Tensor, nn

from fastssl.errors import UserError
from fastssl.methods.relative_patch import DIRECTIONS, RelativePatch, RelativePatchConfig

NOTHING = {"gap": 0.0, "jitter": 0.0, "colors": "keep", "pixelate": 0.0}


class Means(nn.Module):
    """An encoder that returns the mean of each channel: (N, 3, H, W) to (N, 3)."""

    feature_dim = 3

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3))


def noise(batch: int, size: int, seed: int = 0) -> Tensor:
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(seed))


def moved(patches: Tensor, image: Tensor, most: int) -> list[list[int]]:
    """How far from the middle of its cell each of the (9, C, h, h) normalised patches of a (C, H, H) image lies."""
    side, cell = patches.shape[-1], image.shape[-1] // 3
    first = (image.shape[-1] - 3 * cell) // 2 + (cell - side) // 2
    found = []
    for i, patch in enumerate(patches):
        top, left = first + (i // 3) * cell, first + (i % 3) * cell
        margins = max(0, top - most), max(0, left - most)
        around = image[:, margins[0] : top + side + most, margins[1] : left + side + most]
        windows = around.unfold(1, side, 1).unfold(2, side, 1).movedim(0, 2)  # rows, columns, C, h, h
        windows = (windows - windows.mean((3, 4), keepdim=True)) / windows.std((3, 4), correction=0, keepdim=True)
        (place,) = ((windows - patch).abs().amax((2, 3, 4)) < 1e-3).nonzero().tolist()
        found.append([place[0] + margins[0] - top, place[1] + margins[1] - left])
    return found


def test_each_class_has_all_its_pairs_of_neighbours_equally_often():
    pairs = RelativePatch(Means(), RelativePatchConfig()).pairs
    for direction, (down, right) in enumerate(DIRECTIONS):
        counts = Counter((first, second) for first, second in pairs[direction].tolist())
        assert len(set(counts.values())) == 1
        assert len(counts) == (3 - abs(down)) * (3 - abs(right))
        for first, second in counts:
            assert (second // 3 - first // 3, second % 3 - first % 3) == (down, right)


def test_what_is_compared_are_the_pairs_of_the_classes(build, monkeypatch):
    method = build("relative_patch", hidden_dim=9)
    fused: list[Tensor] = []
    method.fc6 = nn.Identity()
    method.encoder = Numbering()
    method.fuse.register_forward_pre_hook(lambda _module, inputs: fused.append(inputs[0]))
    targets: list[Tensor] = []
    monkeypatch.setattr(method, "classification_loss", lambda _logits, where: targets.append(where) or where.sum())
    method([noise(64, 30)])
    (pairs,), (classes,) = fused, targets
    first, second = (part.argmax(1).tolist() for part in pairs.split(9, dim=1))
    seen = set()
    for a, b, where in zip(first, second, classes.tolist(), strict=True):
        assert (b // 3 - a // 3, b % 3 - a % 3) == DIRECTIONS[where]
        seen.add((a, b))
    assert len(seen) == 40  # 12 beside, 12 above, 16 aslant
    assert classes.bincount().tolist() == [64] * 8


class Numbering(nn.Module):
    """Tells the cell of each patch of a batch, one-hot: (N * 9, ...) to (N * 9, 9)."""

    feature_dim = 9

    def forward(self, x: Tensor) -> Tensor:
        return torch.eye(9).repeat(len(x) // 9, 1)


def test_loss_is_the_cross_entropy_of_eight_classes(build):
    method = build("relative_patch")
    logits: list[Tensor] = []
    method.fuse.register_forward_hook(lambda _module, _inputs, output: logits.append(output))
    loss = method([noise(2, 24)])
    rows = logits[0].tolist()
    assert len(rows) == 16
    total = sum(math.log(sum(map(math.exp, row))) - row[i % 8] for i, row in enumerate(rows))
    assert loss.item() == pytest.approx(total / 16, rel=1e-5)
    right = sum(row.index(max(row)) == i % 8 for i, row in enumerate(rows))
    assert method.metrics(0.0, 2) == {"pretext_accuracy": pytest.approx(right / 16), "chance": 0.125}


def test_gap_and_jitter_are_the_papers_at_its_size():
    method = RelativePatch(Means(), RelativePatchConfig(colors="keep", pixelate=0.0))
    image = noise(1, 432)
    torch.manual_seed(0)
    patches = method.patches(image)[0]
    assert patches.shape == (9, 3, 96, 96)
    found = [abs(x) for place in moved(patches, image[0], most=7) for x in place]
    assert max(found) > 4
    assert len(set(found)) > 4


@pytest.mark.parametrize(("size", "side", "jitter"), [(64, 14, 1), (32, 7, 1), (224, 49, 4), (16, 3, 1)])
def test_gap_and_jitter_follow_the_size(size, side, jitter):
    method = RelativePatch(Means(), RelativePatchConfig(colors="keep", pixelate=0.0))
    image = noise(1, size)
    patches = method.patches(image)[0]
    assert patches.shape[-1] == side
    found = {abs(x) for place in moved(patches, image[0], most=jitter) for x in place}
    assert len(found) > 1


def test_without_gap_and_jitter_patches_are_the_whole_grid():
    method = RelativePatch(Means(), RelativePatchConfig(**NOTHING))
    image = noise(1, 12)
    patches = method.patches(image)[0]
    assert patches.shape[-1] == 4
    assert moved(patches, image[0], most=1) == [[0, 0]] * 9


def test_dropping_leaves_one_channel_of_each_patch_and_faint_noise():
    torch.manual_seed(0)
    patches = RelativePatch(Means(), RelativePatchConfig(pixelate=0.0)).patches(noise(32, 48)).flatten(0, 1)
    deviation = patches.std((2, 3))
    whole, faint = deviation > 0.5, deviation < 0.02
    assert whole.sum(1).tolist() == [1] * len(patches)
    assert faint.sum(1).tolist() == [2] * len(patches)
    assert deviation[faint].mean().item() == pytest.approx(0.01, rel=0.02)
    assert whole.sum(0).min() > 0.2 * len(patches)


def test_projection_takes_green_against_magenta_away_and_nothing_else():
    projection = RelativePatch(Means(), RelativePatchConfig()).projection.double()
    std = torch.tensor([0.229, 0.224, 0.225], dtype=torch.float64)
    in_rgb = projection * std[:, None] / std
    assert (in_rgb @ torch.tensor([-1.0, 2.0, -1.0], dtype=torch.float64)).abs().max() < 1e-6
    for kept in ([1.0, 1.0, 1.0], [1.0, 0.0, -1.0]):
        vector = torch.tensor(kept, dtype=torch.float64)
        assert torch.allclose(in_rgb @ vector, vector, atol=1e-6)


def test_projected_patches_do_not_tell_green_from_magenta():
    method = RelativePatch(Means(), RelativePatchConfig(**NOTHING | {"colors": "project"}))
    image = noise(1, 12)
    axis = torch.tensor([-1.0, 2.0, -1.0]) / torch.tensor([0.229, 0.224, 0.225])
    tinted = image + axis.view(3, 1, 1) * noise(1, 12, seed=1)[:, :1]
    assert torch.allclose(method.patches(image), method.patches(tinted), atol=1e-3)
    assert not torch.allclose(method.patches(image), method.patches(tinted * 1.0 + noise(1, 12, seed=2)), atol=0.1)


def test_pixelation_takes_the_resolution_of_some_patches():
    torch.manual_seed(0)
    images = noise(32, 96)
    kept, coarse = (
        RelativePatch(Means(), RelativePatchConfig(**NOTHING | {"pixelate": share})).patches(images)
        for share in (0.0, 0.25)
    )
    changed = (kept != coarse).flatten(2).any(2)
    assert 0.15 < changed.float().mean() < 0.35
    assert coarse[changed].std() < 0.9 < kept[changed].std()


def test_batch_norm_behind_the_encoder_has_no_scale_and_no_shift(build):
    method = build("relative_patch")
    norms = [module for part in (method.fc6, method.fuse) for module in part.modules() if hasattr(module, "affine")]
    assert [norm.affine for norm in norms] == [False, False]


def test_colours_are_left_to_the_patches():
    assert RelativePatch.view_plan(96).grayscale == 0.0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"gap": -0.1}, r"gap of relative_patch must be a share in \[0, 1\]; got -0.1"),
        ({"pixelate": math.nan}, "pixelate of relative_patch must be a share"),
        ({"gap": 0.1, "jitter": 0.06}, "jitter of relative_patch must be at most half its gap, 0.05.*; got 0.06"),
        ({"colors": "dropp"}, "unknown colors of relative_patch 'dropp': did you mean 'drop'"),
        ({"hidden_dim": 0}, "hidden_dim of relative_patch must be 1 or more; got 0"),
    ],
)
def test_refuses_settings_that_cannot_be(settings, message):
    with pytest.raises(UserError, match=message):
        RelativePatchConfig(**settings)


def test_refuses_images_too_small_for_its_grid():
    with pytest.raises(UserError, match=r"images of 11 pixels give tiles of 2 with a gap of 0\.333 of the cell"):
        RelativePatch.view_plan(11)
    with pytest.raises(UserError, match="relative_patch cuts 3 x 3 tiles of 3 pixels or more"):
        RelativePatch(Means(), RelativePatchConfig(gap=0.9))([noise(1, 24)])
