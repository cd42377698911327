"""SupCon against its definition, one row at a time."""

from __future__ import annotations

import pytest
import torch
from formulas import sup_con

from fastssl.losses import NTXent, SupCon, supcon_loss

Z = torch.randn(10, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("labels", [[0, 1, 0, 2, 1, 0, 3, 2, 0, 1], [5] * 10, [-3, 7, 7, 9, 2**40, 2**40, 1, 1, 1, -3]])
def test_equals_its_definition(labels: list[int]) -> None:
    classes = torch.tensor(labels)
    z = Z.clone().requires_grad_()
    loss = SupCon(0.1)(z, classes)
    want = sup_con(z, classes, 0.1)
    torch.testing.assert_close(loss, want)
    torch.testing.assert_close(*(torch.autograd.grad(x, z)[0] for x in (loss, want)))


def test_of_two_views_of_unlabelled_samples_is_nt_xent() -> None:
    own = torch.arange(5).repeat(2)
    torch.testing.assert_close(SupCon(0.2)(Z, own), NTXent(0.2)(Z[:5], Z[5:]))


def test_without_a_pair_it_is_0() -> None:
    z = Z.clone().requires_grad_()
    loss = SupCon(0.1)(z, torch.arange(10))
    loss.backward()
    assert loss == 0
    assert z.grad.eq(0).all()


def test_bad_input_is_named() -> None:
    with pytest.raises(ValueError, match=r"SupCon: labels must have shape \(10\); got \(9\)"):
        SupCon(0.1)(Z, torch.arange(9))
    with pytest.raises(TypeError, match=r"SupCon: labels must be int64; got torch\.float32"):
        SupCon(0.1)(Z, torch.zeros(10))
    with pytest.raises(ValueError, match=r"SupCon: temperature must be finite and above 0; got 0\.0"):
        supcon_loss(Z, torch.arange(10), temperature=0.0)
    with pytest.raises(ValueError, match="SupCon: needs at least two rows; got 1"):
        SupCon(0.1)(Z[:1], torch.arange(1))
