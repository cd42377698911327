from __future__ import annotations

import pytest
import torch

from fastssl.errors import UserError
from fastssl.methods.barlow_twins import BarlowTwinsConfig


def test_the_loss_is_equation_1(build, views_of):
    method = build("barlow_twins", redundancy_weight=0.3, scale=0.5, out_dim=3).double()
    views = [view.double() for view in views_of(method)]
    z = [method.projector(method.encoder(view)) for view in views]
    z = [(x - x.mean(0)) / (x.var(0, correction=0) + 1e-5).sqrt() for x in z]
    total = 0.0
    for i in range(3):
        for j in range(3):
            c = sum((z[0][n, i] * z[1][n, j]).item() for n in range(6)) / 6
            total += (1 - c) ** 2 if i == j else 0.3 * c**2
    assert method(views).item() == pytest.approx(0.5 * total, rel=1e-6)


def test_each_view_has_its_own_batch_statistics(build, views_of):
    method = build("barlow_twins")
    seen: list[int] = []
    method.encoder.bn1.register_forward_hook(lambda _module, inputs, _output: seen.append(len(inputs[0])))
    method(views_of(method))
    assert seen == [6, 6]


def test_the_projector_is_four_times_as_wide_as_the_features(build):
    method = build("barlow_twins")
    widths = [layer.weight.shape[0] for layer in method.projector.layers if isinstance(layer, torch.nn.Linear)]
    assert widths == [4 * method.encoder.feature_dim] * 3


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"redundancy_weight": 0.0}, "redundancy_weight of Barlow Twins must be a finite number above 0; got 0.0"),
        ({"scale": -1.0}, "scale of Barlow Twins must be a finite number above 0; got -1.0"),
        ({"out_dim": 0}, "out_dim of Barlow Twins must be 1 or more; got 0"),
    ],
)
def test_refuses_settings_that_cannot_be(settings, message):
    with pytest.raises(UserError, match=message):
        BarlowTwinsConfig(**settings)
