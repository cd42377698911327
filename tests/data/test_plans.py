from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from fastssl.data import plan_words, plans
from fastssl.data.lab import to_rgb
from fastssl.data.views import make_views
from fastssl.errors import UserError
from fastssl.ops import rgb_to_lab, tiles


def test_every_name_leads_to_a_plan_of_the_size_asked_for() -> None:
    told = "byol cifar colorization dino drawings eval jigsaw mae moco_v2 relative_patch rotation simclr"
    assert plans.names() == told.split()
    for name in plans.names():
        assert plans.get(name)(48).size == 48
        assert getattr(plans, name) is plans.get(name)


def test_an_unknown_name_is_refused_with_the_nearest() -> None:
    with pytest.raises(UserError, match=r"'simclr2'.*'simclr'"):
        plans.get("simclr2")


def test_simclr_takes_the_papers_recipe_for_large_images() -> None:
    plan = plans.simclr(224)
    assert (plan.views, plan.crop_scale, plan.flip, plan.jitter, plan.grayscale) == (2, (0.08, 1.0), 0.5, 0.8, 0.2)
    assert (plan.brightness, plan.contrast, plan.saturation, plan.hue) == (0.8, 0.8, 0.8, 0.2)
    assert (plan.blur, plan.blur_sigma) == (0.5, (0.1, 2.0))


def test_simclr_takes_the_cifar_recipe_below_96_pixels() -> None:
    assert plans.simclr(96).blur == 0.5
    assert plans.simclr(95) == plans.cifar(95)
    large, small = plans.simclr(224), plans.cifar(224)
    assert (small.brightness, small.hue, small.blur) == (0.4, 0.1, 0.0)
    same = dict(brightness=0.8, contrast=0.8, saturation=0.8, hue=0.2, blur=0.5)
    assert replace(small, **same) == large


def test_drawings_changes_simclr_only_where_it_says() -> None:
    plan = plans.drawings(64)
    assert (plan.crop_scale, plan.jitter, plan.grayscale) == ((0.2, 1.0), 0.3, 0.05)
    assert replace(plan, crop_scale=(0.08, 1.0), jitter=0.8, grayscale=0.2) == plans.simclr(64)


def test_byols_views_are_blurred_and_solarized_differently() -> None:
    plan = plans.byol(224)
    assert plan.total == 2
    assert [(part.blur, part.solarize) for part in plan.parts] == [(1.0, 0.0), (0.1, 0.2)]
    assert {(part.crop_scale, part.saturation, part.jitter) for part in plan.parts} == {((0.08, 1.0), 0.2, 0.8)}


def test_dino_has_two_large_and_many_small_crops() -> None:
    plan = plans.dino(224)
    assert plan.total == 10
    assert [(part.size, part.views, part.blur, part.solarize) for part in plan.parts] == [
        (224, 1, 1.0, 0.0),
        (224, 1, 0.1, 0.2),
        (96, 8, 0.5, 0.0),
    ]
    assert [part.crop_scale for part in plan.parts] == [(0.4, 1.0), (0.4, 1.0), (0.05, 0.4)]
    assert {part.interpolation for part in plan.parts} == {"bicubic"}
    assert plans.dino(224, local_views=0).total == 2
    assert [plans.dino(size).parts[2].size for size in (16, 32, 64, 96, 128)] == [8, 16, 24, 40, 56]


def test_rotation_turns_by_every_quarter() -> None:
    assert [part.rot90 for part in plans.rotation(32).parts] == [(0,), (1,), (2,), (3,)]


def test_views_to_be_cut_show_nearly_all_of_the_image_and_often_lose_their_colours() -> None:
    jigsaw, patch = plans.jigsaw(225), plans.relative_patch(96)
    assert jigsaw.crop_scale == pytest.approx([(225 / 255) ** 2] * 2)
    assert (jigsaw.grayscale, patch.grayscale) == (0.3, 2 / 3)
    assert patch.crop_scale == (1 / 3, 1.0)
    for plan in (jigsaw, patch):
        neutral = replace(plan, crop_scale=(1.0, 1.0), grayscale=0.0)
        assert (plan.total, neutral) == (1, plans.ViewPlan(size=plan.size))


def test_the_tiles_of_a_puzzle_can_be_cut_from_its_view() -> None:
    images = torch.randint(256, (2, 3, 255, 255), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    (view,) = make_views(images, plans.jigsaw(225), torch.Generator().manual_seed(1))
    cut = tiles(view, 3, torch.randperm(9), size=64, jitter=5, normalize=True)
    assert cut.shape == (2, 9, 3, 64, 64)
    assert cut.mean((3, 4)).abs().max() < 1e-4


def test_colorization_leaves_colours_alone() -> None:
    plan = plans.colorization(176)
    assert (plan.flip, plan.jitter, plan.grayscale, plan.blur, plan.solarize) == (0.5, 0.0, 0.0, 0.0, 0.0)
    images = torch.randint(256, (8, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    images[0], images[1] = 0, 255
    (view,) = make_views(images, plan, torch.Generator().manual_seed(1))
    rgb = to_rgb(view)
    assert (rgb.min(), rgb.max()) == (pytest.approx(0, abs=1e-5), pytest.approx(1, abs=1e-5))
    light = rgb_to_lab(rgb)[:2, 0].mean((1, 2))
    assert light.tolist() == pytest.approx([0, 100], abs=1e-2)


def test_parts_of_parts_are_counted() -> None:
    plan = plans.ViewPlan(size=8, others=(plans.ViewPlan(size=6, views=2, others=(plans.ViewPlan(size=4),)),))
    assert [part.size for part in plan.parts] == [8, 6, 4]
    assert plan.total == 4


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("size", 0),
        ("views", 0),
        ("flip", 1.5),
        ("blur", float("nan")),
        ("contrast", -0.1),
        ("hue", 0.6),
        ("crop_scale", (0.0, 1.0)),
        ("crop_scale", (0.5, 0.2)),
        ("crop_ratio", (0.0, 1.0)),
        ("blur_sigma", (0.0, 1.0)),
        ("std", (0.0, 1.0, 1.0)),
        ("solarize", -0.1),
        ("rot90", ()),
        ("rot90", (0, 4)),
        ("interpolation", "nearest"),
        ("interpolation", "bicubic"),
        ("mean", (0.5, 0.5, 0.5)),
        ("name", "blur"),
        ("name", "other"),
    ],
)
def test_a_field_out_of_range_is_named(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=field):
        plans.ViewPlan(**{"size": 8, "others": (plans.ViewPlan(size=8, name="other"),), field: value})


def test_a_change_is_made_to_all_parts_or_to_one() -> None:
    plan = plans.changed(plans.dino(224), {"flip": 0.0, "blur": 0.3, "local": {"views": 6, "blur": 0.0}})
    assert [part.flip for part in plan.parts] == [0.0, 0.0, 0.0]
    assert [part.blur for part in plan.parts] == [0.3, 0.3, 0.0]
    assert [part.views for part in plan.parts] == [1, 1, 6]
    assert [part.solarize for part in plan.parts] == [0.0, 0.2, 0.0]
    back = {"flip": 0.5, "first": {"blur": 1.0}, "second": {"blur": 0.1}, "local": {"views": 8, "blur": 0.5}}
    assert plans.changed(plan, back) == plans.dino(224)


def test_what_must_be_alike_can_be_changed_in_all_parts_together() -> None:
    plan = plans.changed(plans.dino(64), {"interpolation": "bilinear"})
    assert {part.interpolation for part in plan.parts} == {"bilinear"}
    with pytest.raises(UserError, match=r"plan\.local\.interpolation cannot be set by itself: set plan\.interpolation"):
        plans.changed(plans.dino(64), {"local": {"interpolation": "bilinear"}})


@pytest.mark.parametrize("name", plans.names())
def test_no_change_is_the_plan_itself(name: str) -> None:
    plan = plans.get(name)(48)
    assert plans.changed(plan, {}) == plans.changed(plan, {"flip": plan.flip}) == plan


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"blurr": 0.1}, "unknown setting 'plan.blurr': did you mean 'plan.blur'?"),
        ({"lokal": {"views": 2}}, "unknown setting 'plan.lokal': did you mean 'plan.local'?"),
        ({"local": {"view": 2}}, "unknown setting 'plan.local.view': did you mean 'plan.local.views'?"),
        ({"local": 2}, "plan.local needs settings of the form name: value; got 2"),
        ({"mean": (0.0, 0.0, 0.0)}, "plan.mean cannot be set: the encoder is fed alike"),
        ({"local": {"mean": (0.0, 0.0, 0.0)}}, "plan.local.mean cannot be set: the encoder is fed alike"),
        ({"flip": 2.0}, "plan.flip must be a probability in [0, 1]; got 2.0"),
        ({"second": {"crop_scale": (0.5, 0.2)}}, "plan.second.crop_scale must be 0 < low <= high <= 1; got (0.5, 0.2)"),
    ],
)
def test_a_change_that_cannot_be_made_is_named(changes: dict[str, object], message: str) -> None:
    with pytest.raises(UserError) as error:
        plans.changed(plans.dino(224), changes)
    assert message in str(error.value)


def test_a_plan_of_one_part_is_described_step_by_step() -> None:
    assert plan_words.describe(plans.simclr(224)).splitlines() == [
        "views 1 and 2: 224 x 224 pixels",
        "  crop: 8 to 100 % of the area, width to height 0.75 to 1.33, resized bilinear",
        "  flip: 50 % of the views, left to right",
        "  colour jitter: 80 % of the views, in an order drawn anew, brightness x 0.2 to 1.8, contrast x 0.2 to 1.8, "
        "saturation x 0.2 to 1.8, hue by up to 0.2 turns",
        "  grey: 20 % of the views",
        "  blur: 50 % of the views, sigma 0.1 to 2 pixels",
        "normalised by ImageNet's mean and standard deviation",
    ]
    assert plan_words.describe(plans.eval(32)).splitlines()[:2] == [
        "view 1: 32 x 32 pixels",
        "  crop: the largest square in the middle, resized bilinear",
    ]
    plain = plans.ViewPlan(size=32, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    assert plan_words.describe(plain).endswith("values stay in [0, 1]")


def test_later_parts_are_described_by_what_differs() -> None:
    told = plan_words.describe(plans.dino(224))
    assert "view 2 (second): 224 x 224 pixels, as view 1 but for\n  blur: 10 %" in told
    assert "  solarization: 20 % of the views, the brighter half of the values inverted\n" in told
    assert (
        "views 3 to 10 (local): 96 x 96 pixels, as view 1 but for\n"
        "  crop: 5 to 40 % of the area, width to height 0.75 to 1.33, resized bicubic\n  blur: 50 %"
    ) in told
    turned = plan_words.describe(plans.rotation(32))
    assert "view 3 (r180): 32 x 32 pixels, as view 1 but for\n  turn: by 180 degrees against the clock" in turned
    still = plans.changed(plans.byol(32), {"second": {"blur": 0.0}})
    assert "as view 1 but for\n  blur: none" in plan_words.describe(still)
    one = plans.ViewPlan(size=8, others=(plans.ViewPlan(size=4),))
    assert "view 2: 4 x 4 pixels, as view 1\n" in plan_words.describe(one)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"rot90": (0, 1, 2, 3)}, "turn: by 0, 90, 180 or 270 degrees against the clock"),
        ({"flip": 1.0}, "flip: always, left to right"),
        ({"jitter": 1.0, "contrast": 1.5}, "colour jitter: always, in an order drawn anew, contrast x 0 to 2.5"),
        (
            {"mean": (0.5, 0.5, 0.5), "std": (0.25, 0.5, 1.0)},
            "normalised by mean (0.5, 0.5, 0.5) and standard deviation",
        ),
        ({"crop_scale": (0.25, 0.25)}, "crop: 25 % of the largest square's area, a square, resized"),
    ],
)
def test_each_step_has_its_words(changes: dict[str, object], line: str) -> None:
    assert line in plan_words.describe(plans.ViewPlan(size=8, **changes))


def test_steps_that_change_nothing_are_not_told() -> None:
    plan = plans.ViewPlan(size=8, jitter=1.0)  # by no strength
    assert plan_words.describe(plan) == plan_words.describe(plans.ViewPlan(size=8))
