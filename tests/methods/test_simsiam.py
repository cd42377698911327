from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from fastssl.errors import UserError
from fastssl.methods.simsiam import SimSiam, SimSiamConfig


class Flat(nn.Module):
    """An encoder that returns its pixels: (N, 3, 2, 2) to (N, 12)."""

    feature_dim = 12

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)


def views(batch: int = 4) -> list[Tensor]:
    return [torch.randn(batch, 3, 2, 2, generator=torch.Generator().manual_seed(i)) for i in range(2)]


def tiny(**settings) -> SimSiam:
    torch.manual_seed(0)
    return SimSiam(Flat(), SimSiamConfig(**settings))


def cosine(a: list[float], b: list[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True)) / math.hypot(*a) / math.hypot(*b)


def test_the_loss_is_equation_2():
    method, both = tiny(), views()
    z = [method.projector(view.flatten(1)) for view in both]
    p = [method.predictor(x).tolist() for x in z]
    z = [x.tolist() for x in z]
    total = -sum(cosine(a, b) / 2 for a, b in zip([*p[0], *p[1]], [*z[1], *z[0]], strict=True))
    assert method(both).item() == pytest.approx(total / 4, rel=1e-5)


def test_a_projection_that_is_predicted_gets_no_gradient():
    method, both = tiny(), views()
    kept: list[Tensor] = []
    method.projector.register_forward_hook(lambda _module, _inputs, output: kept.append(output) or output.retain_grad())
    method(both).backward()
    z0, z1 = (x.detach().requires_grad_() for x in kept)
    for mine, other, got in ((z0, z1, kept[0].grad), (z1, z0, kept[1].grad)):
        loss = -torch.cosine_similarity(method.predictor(mine), other.detach()).mean() / 2
        torch.testing.assert_close(torch.autograd.grad(loss, mine)[0], got)


def test_the_predictor_is_a_bottleneck_and_the_projections_are_normalised():
    method = tiny(out_dim=16)
    assert method.predictor.layers[0].weight.shape == (4, 16)
    assert not method.projector.layers[-1].affine
    assert len([layer for layer in method.projector.layers if isinstance(layer, nn.Linear)]) == 3
    assert tiny(predictor_dim=3).predictor.layers[0].weight.shape == (3, 12)
    assert len(tiny(projector_layers=2).projector.layers) == 5


@pytest.mark.parametrize("name", ["out_dim", "projector_layers", "predictor_dim"])
def test_refuses_settings_that_cannot_be(name):
    with pytest.raises(UserError, match=f"{name} of SimSiam must be 1 or more; got 0"):
        SimSiamConfig(**{name: 0})
