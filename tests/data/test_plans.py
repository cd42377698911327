from __future__ import annotations

from dataclasses import replace

import pytest

from fastssl.data import plans
from fastssl.errors import UserError


def test_every_name_leads_to_a_plan_of_the_size_asked_for() -> None:
    assert plans.names() == ["byol", "dino", "drawings", "evaluation", "mae", "moco_v2", "rotation", "simclr"]
    for name in plans.names():
        assert plans.get(name)(48).size == 48


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
    plan = plans.simclr(95)
    assert (plan.brightness, plan.hue, plan.blur) == (0.4, 0.1, 0.0)


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


def test_rotation_turns_by_every_quarter() -> None:
    assert [part.rot90 for part in plans.rotation(32).parts] == [(0,), (1,), (2,), (3,)]


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
    ],
)
def test_a_field_out_of_range_is_named(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=field):
        plans.ViewPlan(**{"size": 8, "others": (plans.ViewPlan(size=8),), field: value})
