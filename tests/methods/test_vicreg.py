from __future__ import annotations

import math

import pytest

from fastssl.errors import UserError
from fastssl.methods.vicreg import VICRegConfig


def test_the_loss_is_equation_6(build, views_of):
    method = build("vicreg", invariance=2.0, variance=3.0, covariance=0.5, out_dim=3).double()
    views = [view.double() for view in views_of(method)]
    z = [method.expander(method.encoder(view)) for view in views]
    total = 2.0 * (z[0] - z[1]).square().mean().item()
    for x in z:
        centered = x - x.mean(0)
        for i in range(3):
            for j in range(3):
                c = (centered[:, i] * centered[:, j]).sum().item() / 5
                hinge = 3.0 * max(0.0, 1 - math.sqrt(c + 1e-4)) / 3 / 2
                total += hinge if i == j else 0.5 * c**2 / 3
    assert method(views).item() == pytest.approx(total, rel=1e-6)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"variance": -1.0}, "variance of VICReg must be 0 or more; got -1.0"),
        ({"invariance": math.nan}, "invariance of VICReg must be 0 or more; got nan"),
        ({"out_dim": 0}, "out_dim of VICReg must be 1 or more; got 0"),
    ],
)
def test_refuses_settings_that_cannot_be(settings, message):
    with pytest.raises(UserError, match=message):
        VICRegConfig(**settings)
