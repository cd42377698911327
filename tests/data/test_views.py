from __future__ import annotations

import colorsys
import math

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from fastssl.data import views
from fastssl.data.plans import ViewPlan, evaluation, simclr
from fastssl.data.views import make_views

RAW = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(batch: int = 4, height: int = 12, width: int | None = None, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, (batch, 3, height, width or height), dtype=torch.uint8, generator=generator(seed))


def planes(batch: int = 4, size: int = 12) -> Tensor:
    return (images(batch, size).float() / 255).transpose(0, 1).contiguous()


def luma(pixels: np.ndarray) -> np.ndarray:
    return pixels @ np.array([0.299, 0.587, 0.114])


def test_the_evaluation_plan_gives_the_normalised_image_back() -> None:
    plan = evaluation(12)
    (view,) = make_views(images(), plan, generator())
    expected = (images().float() / 255 - torch.tensor(plan.mean)[:, None, None]) / torch.tensor(plan.std)[:, None, None]
    torch.testing.assert_close(view, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("height", "width", "size"), [(16, 16, 9), (9, 9, 16), (64, 64, 7), (1, 1, 5), (5, 5, 1)])
def test_resizing_is_pillows(height: int, width: int, size: int) -> None:
    batch = images(2, height, width)
    (view,) = make_views(batch, ViewPlan(size=size, **RAW), generator())
    for image, mine in zip(batch, view, strict=True):
        pillow = Image.fromarray(image.permute(1, 2, 0).numpy()).resize((size, size), Image.Resampling.BILINEAR)
        theirs = torch.tensor(np.asarray(pillow)).permute(2, 0, 1)
        assert (255 * mine - theirs).abs().max() < 1.01  # Pillow rounds to whole levels after each direction


def test_a_crop_is_the_resized_part_of_the_image() -> None:
    plan = ViewPlan(size=8, crop_scale=(0.25, 0.25), **RAW)
    batch = images(1, 16).expand(6, -1, -1, -1)
    top, left, height, width = views._Draw(6, generator(1), torch.device("cpu")).crop(plan, 16, 16)
    (view,) = make_views(batch, plan, generator(1))
    # A crop of 8 pixels resized to 8 is a shift: bilinear interpolation between whole-pixel shifts.
    assert torch.allclose(torch.stack([height, width]), torch.tensor(8.0))
    pixels = batch[0].float() / 255
    for i in range(6):
        y, x = int(top[i]), int(left[i])
        dy, dx = float(top[i]) - y, float(left[i]) - x
        part = pixels[:, y : y + 9, x : x + 9]
        rows = part[:, :8] * (1 - dy) + part[:, 1:] * dy
        torch.testing.assert_close(view[i], rows[:, :, :8] * (1 - dx) + rows[:, :, 1:] * dx, atol=1e-4, rtol=0)


def test_flipping_mirrors_left_and_right_for_half_of_the_samples() -> None:
    batch = images(1, 6).expand(400, -1, -1, -1)
    (view,) = make_views(batch, ViewPlan(size=6, flip=0.5, **RAW), generator())
    original = batch[0].float() / 255
    kept = (view - original).abs().amax((1, 2, 3)) < 1e-5
    flipped = (view - original.flip(2)).abs().amax((1, 2, 3)) < 1e-5
    assert bool((kept ^ flipped).all())
    assert 160 < int(flipped.sum()) < 240


def test_crops_follow_the_plan() -> None:
    plan = simclr(32)
    top, left, height, width = views._Draw(20_000, generator(), torch.device("cpu")).crop(plan, 100, 100)
    area, ratio = height * width / 100**2, width / height
    assert area.min() >= 0.08 - 1e-6
    assert area.max() <= 1 + 1e-6
    assert area.mean() == pytest.approx(0.4778, abs=0.006)  # that of a uniform area, given that the crop fits
    assert ratio.min() >= 0.75 - 1e-5
    assert ratio.max() <= 4 / 3 + 1e-5
    assert ratio.log().mean() == pytest.approx(0, abs=0.01)
    assert torch.minimum(top, left).min() >= 0
    assert torch.maximum(top + height, left + width).max() <= 100 + 1e-4
    position = (left / (100 - width))[width < 99]
    assert position.mean() == pytest.approx(0.5, abs=0.01)
    assert position.std() == pytest.approx(1 / math.sqrt(12), abs=0.01)


def test_a_crop_that_never_fits_is_the_largest_central_one() -> None:
    plan = ViewPlan(size=8, crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0))
    top, left, height, width = views._Draw(3, generator(), torch.device("cpu")).crop(plan, 20, 50)
    assert torch.stack([top, left, height, width])[:, 0].tolist() == [0, 15, 20, 20]


def test_jitter_is_drawn_from_its_ranges_and_neutral_elsewhere() -> None:
    plan = ViewPlan(size=8, jitter=0.8, brightness=0.4, contrast=1.5, saturation=0.4, hue=0.1)
    drawn = dict(views._Draw(20_000, generator(), torch.device("cpu")).jitter(plan))
    bounds = {
        views._brightness: (0.6, 1.4, 1.0),
        views._contrast: (0.0, 2.5, 1.0),
        views._saturation: (0.6, 1.4, 1.0),
        views._hue: (-0.1, 0.1, 0.0),
    }
    assert drawn.keys() == bounds.keys()
    for step, (low, high, neutral) in bounds.items():
        amount = drawn[step]
        moved = amount[amount != neutral]
        assert len(moved) / len(amount) == pytest.approx(0.8, abs=0.01)
        assert low <= moved.min() < low + 0.01 * (high - low)
        assert high - 0.01 * (high - low) < moved.max() <= high
        assert moved.mean() == pytest.approx((low + high) / 2, abs=0.02)


def test_the_order_of_jitter_is_drawn() -> None:
    plan = simclr(8)
    orders = {
        tuple(step for step, _ in views._Draw(1, generator(i), torch.device("cpu")).jitter(plan)) for i in range(99)
    }
    assert len(orders) > 15


def test_brightness_contrast_and_saturation_are_torchvisions() -> None:
    factor = torch.tensor([0.0, 0.4, 1.0, 1.7])
    pixels = planes().permute(1, 2, 3, 0).double().numpy()
    for step in (views._brightness, views._contrast, views._saturation):
        changed = planes()
        step(changed, factor[:, None, None])
        for i, f in enumerate(factor.tolist()):
            towards = {
                views._brightness: np.zeros(()),
                views._contrast: luma(pixels[i]).mean(),
                views._saturation: luma(pixels[i])[..., None],
            }[step]
            expected = np.clip(f * pixels[i] + (1 - f) * towards, 0, 1)
            np.testing.assert_allclose(changed[:, i].permute(1, 2, 0).numpy(), expected, atol=1e-5)


def test_hue_is_that_of_hsv() -> None:
    turn = torch.tensor([-0.5, -0.13, 0.0, 0.37])
    before, after = planes(), planes()
    after[:, :, 0] = before[:, :, 0] = 0.25  # greys, for which hue means nothing
    primaries = torch.eye(3)
    after[:, :, 1, :3] = before[:, :, 1, :3] = primaries[:, None]
    after[:, :, 2, :3] = before[:, :, 2, :3] = 1 - primaries[:, None]
    views._hue(after, turn[:, None, None])
    for i, shift in enumerate(turn.tolist()):
        for old, new in zip(before[:, i].flatten(1).T.tolist(), after[:, i].flatten(1).T.tolist(), strict=True):
            hue, saturation, value = colorsys.rgb_to_hsv(*old)
            assert new == pytest.approx(colorsys.hsv_to_rgb((hue + shift) % 1, saturation, value), abs=2e-5)


def test_dropping_colour_leaves_the_luma_of_those_chosen() -> None:
    changed, chosen = planes(), torch.tensor([True, False, False, True])
    views._drop_colour(changed, chosen)
    assert torch.equal(changed[:, 1:3], planes()[:, 1:3])
    expected = luma(planes()[:, [0, 3]].permute(1, 2, 3, 0).numpy())
    for plane in changed:
        np.testing.assert_allclose(plane[[0, 3]].numpy(), expected, atol=1e-6)


def test_blur_is_a_gaussian_with_mirrored_borders() -> None:
    size, sigma = 60, torch.tensor([0.1, 1.0, 2.0])
    before, after = planes(3, size), planes(3, size)
    views._blur(after, torch.tensor([True, True, False]), sigma)
    assert torch.equal(after[:, 2], before[:, 2])
    torch.testing.assert_close(after[:, 0], before[:, 0], atol=1e-6, rtol=0)
    taps = np.exp(-(np.arange(-3, 4) ** 2) / 2)
    taps /= taps.sum()
    padded = np.pad(before[:, 1].numpy(), ((0, 0), (3, 3), (3, 3)), mode="reflect")
    rows = sum(taps[k] * padded[:, k : k + size] for k in range(7))
    expected = sum(taps[k] * rows[:, :, k : k + size] for k in range(7))
    np.testing.assert_allclose(after[:, 1].numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_tiny_views_can_be_blurred(size: int) -> None:
    (view,) = make_views(images(3, 4), ViewPlan(size=size, blur=1.0), generator())
    assert bool(view.isfinite().all())


@pytest.mark.parametrize("size", [32, 96])
def test_views_depend_on_the_generator_alone(size: int) -> None:
    batch, plan = images(5, 40), simclr(size)
    first, again, other = (make_views(batch, plan, generator(seed)) for seed in (1, 1, 2))
    assert len(first) == 2
    assert all(view.shape == (5, 3, size, size) and view.dtype == torch.float32 for view in first)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0])
    assert not torch.equal(first[0], first[1])


def test_working_in_pieces_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    batch, plan = images(7, 20), simclr(96)
    whole = make_views(batch, plan, generator())
    monkeypatch.setattr(views, "_CACHED_PIXELS", 2 * 96**2)
    for one, other in zip(whole, make_views(batch, plan, generator()), strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=0)


def test_neither_the_images_nor_the_global_generator_are_touched() -> None:
    batch = images()
    torch.manual_seed(3)
    make_views(batch, simclr(16), generator())
    drawn = torch.rand(3)
    torch.manual_seed(3)
    assert torch.equal(drawn, torch.rand(3))
    assert torch.equal(batch, images())


def test_other_inputs_are_refused() -> None:
    with pytest.raises(TypeError, match=r"uint8; got torch\.float32"):
        make_views(images().float(), evaluation(8), generator())
    for shape in ((4, 1, 8, 8), (3, 8, 8), (0, 3, 8, 8)):
        with pytest.raises(ValueError, match=r"\(B, 3, H, W\)"):
            make_views(torch.zeros(shape, dtype=torch.uint8), evaluation(8), generator())
