from __future__ import annotations

from dataclasses import replace

import pytest

from fastssl.data import plans
from fastssl.errors import UserError


def test_every_name_leads_to_a_plan_of_the_size_asked_for() -> None:
    assert plans.names() == ["drawings", "evaluation", "simclr"]
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
    ],
)
def test_a_field_out_of_range_is_named(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=field):
        plans.ViewPlan(**{"size": 8, field: value})
