from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from fastssl.errors import UserError
from fastssl.methods.byol import BYOLConfig
from fastssl.schedule import Schedule


def cosine(a: list[float], b: list[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True)) / math.hypot(*a) / math.hypot(*b)


def test_the_loss_is_equations_2_and_3(build, views_of):
    method = build("byol")
    views = views_of(method)
    predictions = [method.predictor(method.online(view)).tolist() for view in views]
    targets = [method.target(view).tolist() for view in views]
    total = 0.0
    for p, z in ((predictions[0], targets[1]), (predictions[1], targets[0])):
        total += sum(2 - 2 * cosine(a, b) for a, b in zip(p, z, strict=True)) / len(p)
    assert method(views).item() == pytest.approx(total, rel=1e-5)


def test_only_the_online_network_predicts_and_learns(build, views_of):
    method = build("byol")
    said: list[Tensor] = []
    method.predictor.register_forward_hook(lambda _module, _inputs, output: said.append(output))
    method(views_of(method)).backward()
    assert len(said) == 2
    assert all(p.grad is None and not p.requires_grad for p in method.target.parameters())
    assert len(method.target.module) == 2  # encoder and projector


def test_the_target_is_the_online_network_at_first_and_then_an_average(build, views_of):
    method = build("byol", momentum=Schedule(0.75))
    for mine, theirs in zip(method.online.parameters(), method.target.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    before = [p.clone() for p in method.target.parameters()]
    with torch.no_grad():
        for p in method.online.parameters():
            p.mul_(3.0)
    method.after_step(0.5)
    for was, now in zip(before, method.target.parameters(), strict=True):
        torch.testing.assert_close(now, 0.75 * was + 0.25 * 3 * was)


def test_momentum_ends_at_one():
    momentum = BYOLConfig().momentum
    assert momentum.at(0, total=100, per_epoch=10) == 0.996
    assert momentum.at(100, total=100, per_epoch=10) == 1.0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"momentum": Schedule(0.9, 1.1)}, r"momentum of BYOL must be from 0 to 1; got 1\.1"),
        ({"out_dim": 0}, "out_dim of BYOL must be 1 or more; got 0"),
        ({"hidden_dim": 0}, "hidden_dim of BYOL must be 1 or more; got 0"),
    ],
)
def test_refuses_settings_that_cannot_be(settings, message):
    with pytest.raises(UserError, match=message):
        BYOLConfig(**settings)
