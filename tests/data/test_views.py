from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from fastssl.data import plans
from fastssl.data.plans import ViewPlan, byol, dino, rotation, simclr
from fastssl.data.views import draw, make_views
from fastssl.ops import PackedImages, ViewParams

RAW = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
MANY = 20_000


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(batch: int = 4, height: int = 12, width: int | None = None, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, (batch, 3, height, width or height), dtype=torch.uint8, generator=generator(seed))


def one_view(plan: ViewPlan, height: int = 100, width: int = 100, count: int = MANY, seed: int = 0) -> ViewParams:
    """Parameters of the first view, (N, ...)."""
    return ViewParams(*(x[0] for x in draw(plan, (height, width), generator(seed), count=count)))


def test_the_plan_of_an_evaluation_gives_the_normalised_image_back() -> None:
    plan = plans.eval(12)
    (view,) = make_views(images(), plan, generator())
    expected = (images().float() / 255 - torch.tensor(plan.mean)[:, None, None]) / torch.tensor(plan.std)[:, None, None]
    torch.testing.assert_close(view, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("height", "width", "size"), [(16, 16, 9), (9, 9, 16), (64, 64, 7), (1, 1, 5), (5, 5, 1)])
def test_resizing_is_pillows(height: int, width: int, size: int) -> None:
    batch = images(2, height, width) // 2 + 64  # where a cubic overshoots, Pillow cuts off between the directions
    for how in ("bilinear", "bicubic"):
        (view,) = make_views(batch, ViewPlan(size=size, interpolation=how, **RAW), generator())
        for image, mine in zip(batch, view, strict=True):
            pillow = Image.fromarray(image.permute(1, 2, 0).numpy())
            theirs = torch.tensor(np.asarray(pillow.resize((size, size), Image.Resampling[how.upper()])))
            # Pillow rounds to whole levels after each direction
            assert (255 * mine - theirs.permute(2, 0, 1)).abs().max() < (1.01 if how == "bilinear" else 1.3)


def test_a_view_is_the_drawn_crop_resized() -> None:
    plan = ViewPlan(size=8, crop_scale=(0.25, 0.25), **RAW)
    batch = images(1, 16).expand(6, -1, -1, -1)
    crop = draw(plan, (16, 16), generator(1), count=6).crop[0]
    (view,) = make_views(batch, plan, generator(1))
    assert (crop[:, 2:] == 8).all()
    for i, (top, left, height, width) in enumerate(crop.tolist()):
        part = batch[0, :, top : top + height, left : left + width] / 255
        torch.testing.assert_close(view[i], part, atol=1e-6, rtol=0)


def test_flipping_mirrors_left_and_right_for_half_of_the_samples() -> None:
    batch = images(1, 6).expand(400, -1, -1, -1)
    (view,) = make_views(batch, ViewPlan(size=6, flip=0.5, **RAW), generator())
    original = batch[0].float() / 255
    kept = (view - original).abs().amax((1, 2, 3)) < 1e-5
    flipped = (view - original.flip(2)).abs().amax((1, 2, 3)) < 1e-5
    assert bool((kept ^ flipped).all())
    assert 160 < int(flipped.sum()) < 240


def test_crops_follow_the_plan() -> None:
    top, left, height, width = one_view(simclr(32), 1000, 1000).crop.double().unbind(1)
    area, ratio = height * width / 1000**2, width / height
    assert area.min() >= 0.08 - 1e-3
    assert area.max() <= 1
    assert area.mean() == pytest.approx(0.4778, abs=0.006)  # that of a uniform area, given that the crop fits
    assert ratio.min() >= 0.75 - 5e-3
    assert ratio.max() <= 4 / 3 + 5e-3
    assert ratio.log().mean() == pytest.approx(0, abs=0.01)
    assert torch.minimum(top, left).min() >= 0
    assert torch.maximum(top + height, left + width).max() <= 1000
    position = (left / (1000 - width))[width < 990]
    assert position.mean() == pytest.approx(0.5, abs=0.01)
    assert position.std() == pytest.approx(1 / math.sqrt(12), abs=0.01)


def test_a_crop_may_lie_at_any_place_with_room_for_it() -> None:
    plan = ViewPlan(size=8, crop_scale=(0.25, 0.25))
    crop = one_view(plan, 6, 6).crop
    counts = torch.bincount(crop[:, 0] * 4 + crop[:, 1], minlength=16)
    assert (crop[:, 2:] == 3).all()
    assert (counts / MANY - 1 / 16).abs().max() < 6 * math.sqrt(1 / 16 / MANY)


def test_a_crop_that_never_fits_is_the_largest_central_one() -> None:
    plan = ViewPlan(size=8, crop_scale=(1.0, 1.0))
    assert one_view(plan, 20, 50, count=3).crop[0].tolist() == [0, 15, 20, 20]
    wide = replace(plan, crop_ratio=(1.5, 2.0))
    assert one_view(wide, 50, 20, count=3).crop[0].tolist() == [18, 0, 13, 20]


@pytest.mark.parametrize("plan", [plans.rotation, plans.jigsaw, plans.colorization, plans.relative_patch])
@pytest.mark.parametrize(("height", "width"), [(375, 500), (500, 333), (240, 240)])
def test_squares_of_a_wide_image_are_not_always_the_middle_one(plan, height: int, width: int) -> None:
    crops = one_view(plan(64), height, width, count=1000).crop
    assert len(crops[:, :2].unique(dim=0)) > 200
    assert torch.equal(crops[:, 2], crops[:, 3])
    share = (crops[:, 2].double() / min(height, width)).square()
    low, high = plan(64).crop_scale
    assert share.min() > low - 0.02
    assert share.max() < high + 0.02


def test_images_of_different_sizes_have_crops_of_their_own() -> None:
    shapes = torch.tensor([[1, 1], [30, 500], [400, 20]])
    params = draw(simclr(8), shapes, generator())
    top, left, height, width = params.crop.unbind(2)
    assert (torch.stack([top, left, height - 1, width - 1]) >= 0).all()
    assert (top + height <= shapes[:, 0]).all()
    assert (left + width <= shapes[:, 1]).all()
    with pytest.raises(ValueError, match="draw: count must say how many images"):
        draw(simclr(8), (3, 3), generator())


def test_jitter_is_drawn_from_its_ranges_and_neutral_elsewhere() -> None:
    plan = ViewPlan(size=8, jitter=0.8, brightness=0.4, contrast=1.5, saturation=0.4, hue=0.1)
    factors = one_view(plan).factors
    bounds = [(0.6, 1.4, 1.0), (0.0, 2.5, 1.0), (0.6, 1.4, 1.0), (-0.1, 0.1, 0.0)]
    for amount, (low, high, neutral) in zip(factors.unbind(1), bounds, strict=True):
        moved = amount[amount != neutral]
        assert len(moved) / len(amount) == pytest.approx(0.8, abs=0.01)
        assert low <= moved.min() < low + 0.01 * (high - low)
        assert high - 0.01 * (high - low) < moved.max() <= high
        assert moved.mean() == pytest.approx((low + high) / 2, abs=0.02)
    together = (factors != torch.tensor([1.0, 1.0, 1.0, 0.0])).double().mean(1)
    assert set(together.tolist()) == {0.0, 1.0}
    assert (one_view(replace(plan, contrast=0.0)).factors[:, 1] == 1).all()


def test_every_order_of_the_jitter_is_as_likely() -> None:
    order = one_view(simclr(8)).order
    assert torch.equal(order.sort(1).values, torch.arange(4).expand(MANY, 4))
    counts = torch.bincount(order @ torch.tensor([64, 16, 4, 1]))
    counts = counts[counts > 0]
    assert len(counts) == 24
    assert (counts / MANY - 1 / 24).abs().max() < 6 * math.sqrt(1 / 24 / MANY)


def test_bits_and_blur_follow_the_plan() -> None:
    plan = ViewPlan(size=8, flip=0.3, rot90=(1, 3), grayscale=0.2, blur=0.4, blur_sigma=(0.5, 1.5), solarize=0.1)
    drawn = one_view(plan)
    for bits, share in ((drawn.flip, 0.3), (drawn.gray, 0.2), (drawn.sigma > 0, 0.4), (drawn.solarize, 0.1)):
        assert bits.double().mean() == pytest.approx(share, abs=0.02)
    assert drawn.rot90.unique().tolist() == [1, 3]
    assert drawn.rot90.double().mean() == pytest.approx(2, abs=0.04)
    sigma = drawn.sigma[drawn.sigma > 0]
    assert sigma.min() >= 0.5
    assert sigma.max() <= 1.5
    assert sigma.mean() == pytest.approx(1, abs=0.02)
    independent = torch.corrcoef(torch.stack([drawn.flip, drawn.gray, drawn.sigma > 0, drawn.solarize]).double())
    assert (independent - torch.eye(4)).abs().max() < 0.04


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


def test_the_same_parameters_give_the_same_views() -> None:
    batch, plan = images(5, 40), dino(56, local_views=3)
    params = draw(plan, (40, 40), generator(7), count=5)
    given = make_views(batch, plan, generator(1), params=params)
    drawn = make_views(batch, plan, generator(7))
    assert all(torch.equal(a, b) for a, b in zip(given, drawn, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("channels_last", [False, True])
def test_views_of_another_type_or_layout_are_the_same_rounded(dtype: torch.dtype, channels_last: bool) -> None:
    batch, plan = images(3, 40), dino(56, local_views=1)
    plain = make_views(batch, plan, generator())
    found = make_views(batch, plan, generator(), dtype=dtype, channels_last=channels_last)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    assert all(view.is_contiguous(memory_format=layout) for view in found)
    assert all(torch.equal(view, want.to(dtype)) for view, want in zip(found, plain, strict=True))


def test_images_with_their_channels_last() -> None:
    batch, plan = images(3, 20, 30), simclr(16)
    found, wanted = (make_views(x, plan, generator()) for x in (batch.movedim(1, 3), batch))
    assert all(torch.equal(view, want) for view, want in zip(found, wanted, strict=True))


def test_packed_images_of_different_sizes_have_the_views_that_are_drawn_for_them() -> None:
    each, plan = [images(1, 30, 20), images(1, 9, 50)], dino(32, local_views=1)
    shapes = torch.tensor([image.shape[2:] for image in each])
    pixels = torch.cat([image.movedim(1, 3).flatten() for image in each])
    packed = PackedImages(pixels, torch.tensor([0, each[0].numel()]), *shapes.unbind(1))
    params = draw(plan, shapes, generator(5))
    views = make_views(packed, plan, generator(5))
    for i, image in enumerate(each):
        own = ViewParams(*(x[:, i : i + 1] for x in params))
        for view, want in zip(views, make_views(image, plan, generator(), params=own), strict=True):
            torch.testing.assert_close(view[i : i + 1], want, atol=1e-4, rtol=0)
    with pytest.raises(ValueError, match="offsets, heights and widths must name parts of"):
        make_views(packed._replace(heights=torch.tensor([30, 0])), plan, generator())
    with pytest.raises(TypeError, match=r"make_views: pixels must be uint8; got torch\.float32"):
        make_views(packed._replace(pixels=pixels.float()), plan, generator())


def test_views_of_several_plans_are_one_after_the_other() -> None:
    found = make_views(images(3, 40), dino(56, local_views=3), generator())
    assert [view.shape[2] for view in found] == [56, 56, 24, 24, 24]
    params = draw(byol(32), (40, 40), generator(), count=MANY // 4)
    shares = (params.sigma > 0).double().mean(1), params.solarize.double().mean(1)
    assert torch.stack(shares).flatten().tolist() == pytest.approx([1.0, 0.1, 0.0, 0.2], abs=0.03)


def test_the_rotation_plan_turns_each_view_once_more() -> None:
    still = replace(rotation(12), crop_scale=(1.0, 1.0), flip=0.0)
    still = replace(still, others=tuple(replace(x, crop_scale=(1.0, 1.0), flip=0.0) for x in still.others))
    batch = images(3)
    upright, *turned = make_views(batch, still, generator())
    for quarters, view in enumerate(turned, start=1):
        torch.testing.assert_close(view, upright.rot90(quarters, (2, 3)), atol=1e-5, rtol=0)


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
        make_views(images().float(), plans.eval(8), generator())
    for shape in ((4, 1, 8, 8), (3, 8, 8), (0, 3, 8, 8)):
        with pytest.raises(ValueError, match=r"make_views: images must have shape \(N, 3, H, W\) or \(N, H, W, 3\)"):
            make_views(torch.zeros(shape, dtype=torch.uint8), plans.eval(8), generator())
    with pytest.raises(TypeError, match="make_views: images must be a tensor; got ndarray"):
        make_views(images().numpy(), plans.eval(8), generator())
    with pytest.raises(TypeError, match="dtype must be float32, bfloat16, float16 or float64"):
        make_views(images(), plans.eval(8), generator(), dtype=torch.int64)
