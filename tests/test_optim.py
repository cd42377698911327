from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

from fastssl.errors import UserError
from fastssl.optim import LARS, OptimConfig, build_optimizer, learning_rate, set_rates
from fastssl.schedule import cosine_with_warmup


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 3, bias=False))


def train(module: nn.Module, optimizer: torch.optim.Optimizer, steps: int, seed: int = 1) -> None:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        optimizer.zero_grad()
        module(torch.randn(8, 5, generator=generator)).square().mean().backward()
        optimizer.step()


@pytest.mark.parametrize(("name", "kind"), [("sgd", torch.optim.SGD), ("adamw", torch.optim.AdamW), ("lars", LARS)])
def test_builds_what_the_config_says(name, kind):
    optimizer = build_optimizer(network(), OptimConfig(name=name, lr=0.3, weight_decay=0.01, momentum=0.8))
    assert type(optimizer) is kind
    assert [group["lr"] for group in optimizer.param_groups] == [0.3, 0.3]
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.01, 0.0]
    for group in optimizer.param_groups:
        assert group["betas"][0] == 0.8 if name == "adamw" else group["momentum"] == 0.8
    assert not optimizer.param_groups[0].get("nesterov", False)


def test_biases_and_norms_never_decay():
    module = network()
    decaying, still = (group["params"] for group in build_optimizer(module, OptimConfig()).param_groups)
    names = {id(p): name for name, p in module.named_parameters()}
    assert [names[id(p)] for p in decaying] == ["0.weight", "3.weight"]
    assert [names[id(p)] for p in still] == ["0.bias", "1.weight", "1.bias"]


@pytest.mark.parametrize("start", [0.0, 0.1])
def test_rates_are_of_all_and_decay_of_those_that_decay(start):
    optimizer = build_optimizer(network(), OptimConfig(weight_decay=start))
    set_rates(optimizer, 0.3, 0.2)
    assert [group["lr"] for group in optimizer.param_groups] == [0.3, 0.3]
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.2, 0.0]


def test_frozen_parameters_are_left_out():
    module = network()
    module[0].requires_grad_(False)
    groups = build_optimizer(module, OptimConfig()).param_groups
    assert sum(len(group["params"]) for group in groups) == 3
    with pytest.raises(ValueError, match="Sequential has no parameter to train"):
        build_optimizer(module.requires_grad_(False), OptimConfig())


def test_parameters_may_have_rates_of_their_own():
    module = network()
    optimizer = build_optimizer(module, OptimConfig(lr=0.2), scales={"0.weight": 0.5, "0.bias": 0.5, "1.bias": 0.25})
    names = {id(p): name for name, p in module.named_parameters()}
    found = {names[id(p)]: group for group in optimizer.param_groups for p in group["params"]}
    rates = {name: group["lr"] for name, group in found.items()}
    assert rates == {"0.weight": 0.1, "0.bias": 0.1, "1.weight": 0.2, "1.bias": 0.05, "3.weight": 0.2}
    assert all(group["lr"] == 0.2 * group["scale"] for group in found.values())
    assert {name for name, group in found.items() if group["weight_decay"]} == {"0.weight", "3.weight"}


def test_the_rate_of_a_step():
    config = OptimConfig(lr=0.1, final_lr=0.01, warmup_epochs=2)
    rates = [learning_rate(config, step, total=20, per_epoch=4) for step in range(21)]
    assert rates == [cosine_with_warmup(step, total=20, warmup=8, base=0.1, final=0.01) for step in range(21)]
    assert learning_rate(config, 2, total=4, per_epoch=4) == cosine_with_warmup(2, total=4, warmup=4, base=0.1)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"name": "adam"}, "did you mean 'adamw'"),
        ({"lr": 0.0}, "lr must .* got 0.0"),
        ({"lr": math.nan}, "lr must .* got nan"),
        ({"weight_decay": -1.0}, "weight_decay must .* got -1.0"),
        ({"momentum": 1.0}, "momentum must .* got 1.0"),
        ({"warmup_epochs": -1}, "warmup_epochs must .* got -1"),
        ({"final_lr": 0.2}, "final_lr must .* got 0.2"),
        ({"final_weight_decay": math.inf}, "final_weight_decay must .* got inf"),
    ],
)
def test_config_refuses_values_out_of_bounds(values, message):
    with pytest.raises(UserError, match=message):
        OptimConfig(**values)


def test_lars_takes_the_papers_step():
    """Two steps of algorithm 1 written out in Python's float64, number by number."""
    lr, momentum, decay, trust = 0.5, 0.9, 0.1, 0.02
    w = nn.Parameter(torch.tensor([[3.0, -4.0]], dtype=torch.float64))
    optimizer = LARS([w], lr, momentum=momentum, weight_decay=decay, trust=trust)
    expected, velocity = [3.0, -4.0], [0.0, 0.0]
    for g in ([0.6, 0.8], [-2.0, 1.0]):
        w.grad = torch.tensor([g], dtype=torch.float64)
        optimizer.step()
        w_norm, g_norm = math.hypot(*expected), math.hypot(*g)
        rate = trust * w_norm / (g_norm + decay * w_norm)
        velocity = [
            momentum * v + lr * rate * (gi + decay * wi) for v, gi, wi in zip(velocity, g, expected, strict=True)
        ]
        expected = [wi - v for wi, v in zip(expected, velocity, strict=True)]
        torch.testing.assert_close(w.detach(), torch.tensor([expected], dtype=torch.float64), rtol=1e-14, atol=0)


def test_lars_step_does_not_depend_on_the_gradients_scale():
    moved = []
    for scale in (1.0, 1e3):
        w = nn.Parameter(torch.ones(3, 3))
        w.grad = scale * torch.arange(9.0).view(3, 3)
        LARS([w], 1.0, trust=0.01).step()
        moved.append(1 - w.detach())
    torch.testing.assert_close(moved[0], moved[1])
    assert moved[0].norm().item() == pytest.approx(0.01 * 3.0)


def test_lars_treats_one_dimensional_parameters_as_plain_momentum_sgd():
    """Even ungrouped, with a decay that would show."""
    ours, theirs = (nn.Parameter(torch.tensor([1.0, -2.0])) for _ in range(2))
    lars = LARS([ours], 0.1, momentum=0.9, weight_decay=0.5)
    sgd = torch.optim.SGD([theirs], 0.1, momentum=0.9)
    for gradient in ([1.0, 2.0], [0.5, -1.0]):
        ours.grad, theirs.grad = torch.tensor(gradient), torch.tensor(gradient)
        lars.step()
        sgd.step()
    torch.testing.assert_close(ours, theirs)


def test_lars_moves_a_weight_of_zeros():
    w = nn.Parameter(torch.zeros(2, 2))
    w.grad = torch.ones(2, 2)
    LARS([w], 0.1).step()
    torch.testing.assert_close(w.detach(), torch.full((2, 2), -0.1))


def test_lars_runs_a_closure_with_gradients():
    w = nn.Parameter(torch.ones(2, 2))
    optimizer = LARS([w], 1.0)

    def closure() -> float:
        loss = w.square().sum()
        loss.backward()
        return loss.item()

    assert optimizer.step(closure) == 4.0
    assert bool((w < 1).all())


@pytest.mark.parametrize("values", [{"lr": -1.0}, {"momentum": 1.0}, {"weight_decay": -1.0}, {"trust": 0.0}])
def test_lars_refuses_values_out_of_bounds(values):
    with pytest.raises(ValueError, match="LARS needs"):
        LARS([nn.Parameter(torch.ones(2))], **({"lr": 0.1} | values))


@pytest.mark.parametrize("name", ["sgd", "adamw", "lars"])
def test_state_dict_round_trip_continues_to_the_bit(name):
    config = OptimConfig(name=name, lr=0.05)
    whole = network()
    train(whole, optimizer := build_optimizer(whole, config), steps=3)
    saved = copy.deepcopy((whole.state_dict(), optimizer.state_dict()))
    train(whole, optimizer, steps=3, seed=2)

    resumed = network()
    resumed.load_state_dict(saved[0])
    optimizer = build_optimizer(resumed, config)
    optimizer.load_state_dict(saved[1])
    train(resumed, optimizer, steps=3, seed=2)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))
