"""What every method promises, whichever it is: a new module in ``fastssl.methods`` is tested here."""

from __future__ import annotations

import copy
import math
from dataclasses import fields, is_dataclass

import pytest
import torch
from docstring_parser import parse

from fastssl import methods
from fastssl.data.plans import ViewPlan
from fastssl.methods import Method

pytestmark = pytest.mark.parametrize("name", methods.names())


def test_the_module_says_where_it_comes_from(name):
    assert "arXiv:" in (methods.get(name).__doc__ or "")


def test_config_is_a_frozen_dataclass_of_documented_defaults(name):
    config = methods.get(name).Config
    assert is_dataclass(config)
    assert config.__dataclass_params__.frozen
    config()  # every field has a default
    described = {param.arg_name for param in parse(config.__doc__).params if param.description}
    assert described == {field.name for field in fields(config)}


@pytest.mark.parametrize("size", [16, 224])
def test_view_plan(name, size):
    plan = methods.get(name).view_plan(size)
    assert isinstance(plan, ViewPlan)
    assert plan.size == size


def test_training_reaches_every_parameter(name, build, views_of):
    method = build(name)
    loss = method(views_of(method))
    assert loss.shape == ()
    assert math.isfinite(loss.item())
    loss.backward()
    without = [key for key, p in method.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
    assert without == []
    assert all(bool(p.grad.isfinite().all()) for p in method.parameters() if p.grad is not None)
    assert any(p.requires_grad for p in method.encoder.parameters())


def test_a_few_steps_lower_the_loss(name, build, views_of):
    method = build(name)
    views = views_of(method)
    optimizer = torch.optim.AdamW(method.parameters(), lr=1e-3)
    losses = []
    for step in range(10):
        optimizer.zero_grad()
        loss = method(views)
        loss.backward()
        optimizer.step()
        method.after_step((step + 1) / 10)
        losses.append(loss.item())
    assert losses[-1] < losses[0]


def test_state_dict_holds_the_whole_state(name, build, views_of):
    method, other = build(name, seed=0), build(name, seed=1)
    views = views_of(method)
    method(views)
    other.load_state_dict(copy.deepcopy(method.state_dict()), strict=True)
    for mode in (True, False):
        torch.manual_seed(0)
        expected = method.train(mode)(views)
        torch.manual_seed(0)
        assert torch.equal(other.train(mode)(views), expected)


def test_metrics_are_named_numbers(name, build):
    metrics = build(name).metrics(1.0, 8)
    assert all(isinstance(key, str) and math.isfinite(value) for key, value in metrics.items())
    assert not {"loss", "lr", "step", "epoch"} & metrics.keys()


def test_pictures_are_images_like_the_views(name, build, views_of):
    method = build(name).eval()
    views = views_of(method)
    for caption, pictures in method.pictures(views).items():
        assert caption
        assert pictures.shape[:2] == views[0].shape[:2]
        assert pictures.dtype == torch.float32
        assert bool(pictures.isfinite().all())


def test_is_a_method_with_its_encoder(name, build):
    method = build(name)
    assert isinstance(method, Method)
    assert method.encoder(torch.zeros(2, 3, 16, 16)).shape == (2, method.encoder.feature_dim)
    assert method.config == method.Config()
