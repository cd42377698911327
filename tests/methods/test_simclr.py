from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from fastssl.errors import UserError
from fastssl.methods.simclr import SimCLR, SimCLRConfig


class Flat(nn.Module):
    """An encoder that returns its pixels: (N, 3, 2, 2) to (N, 12)."""

    feature_dim = 12

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)


def nt_xent_by_hand(z: list[list[float]], temperature: float) -> float:
    """Equation 1 and the mean of algorithm 1, one pair after the other. Rows n and n + N are the views of one image."""
    half = len(z) // 2

    def similarity(i: int, j: int) -> float:
        product = sum(a * b for a, b in zip(z[i], z[j], strict=True))
        return product / (math.hypot(*z[i]) * math.hypot(*z[j])) / temperature

    total = 0.0
    for i in range(len(z)):
        others = sum(math.exp(similarity(i, k)) for k in range(len(z)) if k != i)
        total -= math.log(math.exp(similarity(i, (i + half) % len(z))) / others)
    return total / len(z)


def test_loss_without_a_head_is_equation_1_of_the_features():
    views = [torch.randn(3, 3, 2, 2, generator=torch.Generator().manual_seed(i)) for i in range(2)]
    method = SimCLR(Flat(), SimCLRConfig(temperature=0.2, head_layers=0))
    expected = nt_xent_by_hand(torch.cat(views).flatten(1).tolist(), 0.2)
    assert method(views).item() == pytest.approx(expected, rel=1e-5)


def test_the_order_of_the_views_does_not_matter(build, views_of):
    method = build("simclr")
    views = views_of(method)
    assert method(views).item() == pytest.approx(method(views[::-1]).item(), rel=1e-5)


def test_batch_norm_sees_both_views_at_once():
    method = SimCLR(Flat(), SimCLRConfig(hidden_dim=5, out_dim=4))
    views = [torch.randn(3, 3, 2, 2), torch.randn(3, 3, 2, 2) + 5]
    seen: list[int] = []
    method.head.layers[1].register_forward_hook(lambda _module, inputs, _output: seen.append(len(inputs[0])))
    method(views)
    assert seen == [6]


@pytest.mark.parametrize(("hidden_dim", "width"), [(None, 12), (5, 5)])
def test_hidden_width(hidden_dim, width):
    head = SimCLR(Flat(), SimCLRConfig(hidden_dim=hidden_dim, out_dim=4)).head
    assert head.layers[0].weight.shape == (width, 12)
    assert head.layers[3].weight.shape == (4, width)


def test_mutual_information_bound():
    method = SimCLR(Flat(), SimCLRConfig())
    # All 2N - 1 candidates of a row alike: loss log(2N - 1), nothing known of the other view.
    z = torch.ones(8, 3, 2, 2)
    loss = SimCLR(Flat(), SimCLRConfig(head_layers=0))([z, z]).item()
    assert method.metrics(loss, 8)["mutual_information_bound"] == pytest.approx(0.0, abs=1e-5)
    assert method.metrics(0.0, 8) == {"mutual_information_bound": pytest.approx(math.log(15))}


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan, math.inf])
def test_refuses_a_temperature_out_of_bounds(temperature):
    with pytest.raises(UserError, match="temperature of SimCLR"):
        SimCLRConfig(temperature=temperature)


def test_refuses_an_encoder_of_unknown_width():
    with pytest.raises(TypeError, match="Linear has None"):
        SimCLR(nn.Linear(2, 2), SimCLRConfig())


@pytest.mark.parametrize(("name", "value"), [("hidden_dim", 0), ("out_dim", 0), ("head_layers", -1)])
def test_a_head_that_cannot_be_is_refused_before_anything_is_built(name: str, value: int):
    with pytest.raises(UserError, match=f"the {name} of SimCLR must be .* or more; got {value}"):
        SimCLRConfig(**{name: value})
