from __future__ import annotations

import math

import pytest
import torch

from fastssl.errors import UserError
from fastssl.methods.swav import SwAVConfig
from fastssl.ops import sinkhorn_knopp


def test_the_loss_is_equation_1_of_all_pairs_of_a_code_and_another_crop(build, views_of):
    method = build("swav", prototypes=5, temperature=0.2, epsilon=0.1).double()
    views = [view.double() for view in views_of(method)]
    large, small = method.encoder(torch.cat(views[:2])), method.encoder(torch.cat(views[2:]))
    z = method.head(torch.cat([large, small]))
    weight = method.prototypes.weight
    scores = (z / z.norm(dim=1, keepdim=True)) @ (weight / weight.norm(dim=1, keepdim=True)).T
    scores = scores.unflatten(0, (8, 6))
    codes = [sinkhorn_knopp(x, temp=0.1, iterations=3).tolist() for x in scores[:2]]
    pairs = []
    for i, code in enumerate(codes):
        for j, crop in enumerate(scores.tolist()):
            if i != j:
                for q, row in zip(code, crop, strict=True):
                    total = math.log(sum(math.exp(x / 0.2) for x in row))
                    pairs.append(-sum(a * (x / 0.2 - total) for a, x in zip(q, row, strict=True)))
    assert len(pairs) == 2 * 7 * 6
    assert method(views).item() == pytest.approx(sum(pairs) / len(pairs), rel=1e-6)


def test_codes_give_no_gradient_and_prototypes_are_frozen_at_first(build, views_of):
    method = build("swav")
    views = views_of(method)
    method(views).backward()
    assert method.prototypes.weight.grad is None
    method.before_step(2, total=4, per_epoch=2)
    method(views).backward()
    assert method.prototypes.weight.grad.any()


def test_its_crops(build):
    plan = build("swav").view_plan(224)
    assert plan.sizes == [224, 224, *[96] * 6]
    assert [part.crop_scale for part in plan.parts] == [(0.14, 1.0), (0.05, 0.14)]
    assert {(part.blur, part.brightness) for part in plan.parts} == {(0.5, 0.8)}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"prototypes": 0}, "prototypes of SwAV must be 1 or more; got 0"),
        ({"epsilon": 0.0}, "epsilon of SwAV must be a finite number above 0; got 0.0"),
        ({"temperature": math.inf}, "temperature of SwAV must be a finite number above 0; got inf"),
    ],
)
def test_refuses_settings_that_cannot_be(settings, message):
    with pytest.raises(UserError, match=message):
        SwAVConfig(**settings)
