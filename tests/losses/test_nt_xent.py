"""NTXent as a module: it normalises, and refuses a temperature that means nothing."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn.functional import normalize

from fastssl.losses import NTXent
from fastssl.ops import nt_xent


def test_normalises_its_inputs_unless_they_are() -> None:
    z0, z1 = 3 * torch.randn(20, 8), 5 * torch.randn(20, 8)
    want = nt_xent(normalize(z0, dim=1), normalize(z1, dim=1), temperature=0.2)
    torch.testing.assert_close(NTXent(0.2)(z0, z1), want)
    torch.testing.assert_close(NTXent(0.2, normalized=True)(z0, z1), nt_xent(z0, z1, temperature=0.2))


def test_the_least_it_can_be_and_what_chance_gives() -> None:
    """Apart views of apart samples: near 0 when cold. Equal rows everywhere: log of the 2N - 1 candidates."""
    eye = torch.eye(16)
    assert NTXent(0.02)(eye, eye) < 1e-6
    same = torch.ones(16, 4)
    torch.testing.assert_close(NTXent(0.5)(same, same), torch.tensor(math.log(31)))


def test_a_temperature_is_learnt_through_the_rows() -> None:
    """As the docstring tells."""
    z0, z1 = normalize(torch.randn(2, 20, 8, dtype=torch.float64), dim=-1)
    temperature = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    root = temperature.sqrt()
    loss = NTXent(1, normalized=True)(z0 / root, z1 / root)
    loss.backward()
    above, below = (NTXent(t)(z0, z1) for t in (0.3 + 1e-5, 0.3 - 1e-5))
    torch.testing.assert_close(loss, NTXent(0.3)(z0, z1))
    torch.testing.assert_close(temperature.grad, (above - below) / 2e-5, rtol=1e-6, atol=0)


def test_trains() -> None:
    torch.manual_seed(0)
    x = torch.randn(32, 10)
    net = torch.nn.Linear(10, 6)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.5)
    losses = []
    for _ in range(20):
        loss = NTXent(0.5)(net(x), net(x + 0.01 * torch.randn_like(x)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.1


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan"), float("inf")])
def test_a_temperature_that_is_none_is_refused(temperature: float) -> None:
    with pytest.raises(ValueError, match=f"NTXent: temperature must be finite and above 0; got {temperature}"):
        NTXent(temperature)


def test_shows_its_settings() -> None:
    assert repr(NTXent(0.5)) == "NTXent(temperature=0.5, normalized=False)"
