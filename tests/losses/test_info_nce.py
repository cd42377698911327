"""InfoNCE as a module: the op on unit rows, both ways, and what it refuses."""

from __future__ import annotations

import pytest
import torch
from formulas import info_nce

from fastssl.losses import InfoNCE

Q, K = torch.randn(2, 20, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_equals_the_formula() -> None:
    torch.testing.assert_close(InfoNCE(0.2)(3 * Q, K), info_nce(Q, K, 0.2))
    both = (info_nce(Q, K, 0.2) + info_nce(K, Q, 0.2)) / 2
    torch.testing.assert_close(InfoNCE(0.2, symmetric=True)(Q, K), both)
    further = torch.randn(7, 8, dtype=torch.float64)
    torch.testing.assert_close(InfoNCE(0.2)(Q, K, further), info_nce(Q, K, 0.2, further))


def test_a_temperature_may_be_learnt() -> None:
    temperature = torch.tensor(0.2, dtype=torch.float64, requires_grad=True)
    InfoNCE(temperature)(Q, K).backward()
    warmer, colder = (InfoNCE(0.2 + step)(Q, K) for step in (1e-5, -1e-5))
    torch.testing.assert_close(temperature.grad, (warmer - colder) / 2e-5, rtol=1e-6, atol=0)


@pytest.mark.parametrize("size", [0.0, 1e4])
def test_float16_rows_of_any_length_are_normalised(size: float) -> None:
    rows = torch.cat([size * torch.ones(1, 100), torch.randn(3, 100)]).half()
    torch.testing.assert_close(InfoNCE(0.2)(rows, rows), InfoNCE(0.2)(rows.float(), rows.float()), rtol=1e-2, atol=1e-3)


def test_a_second_derivative_is_refused() -> None:
    q = Q.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(InfoNCE(0.2)(q, K), q, create_graph=True)
    with pytest.raises(RuntimeError, match="second derivatives are not supported"):
        gradient.sum().backward()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (
            (Q, K[:5]),
            ValueError,
            r"InfoNCE: queries and keys must have the same shape \(N, D\); got \(20, 8\) and \(5, 8\)",
        ),
        ((Q, K.float()), TypeError, "InfoNCE: queries and keys must have one dtype"),
        ((Q[0], K[0]), ValueError, r"InfoNCE: queries must have shape \(N, D\); got \(8\)"),
        ((Q[:0], K[:0]), ValueError, "InfoNCE: needs at least one sample"),
        ((Q, K.to("meta")), ValueError, "InfoNCE: queries and keys must be on one device; got cpu and meta"),
        ((Q, K, K[0]), ValueError, r"InfoNCE: negatives must have shape \(K, D\); got \(8\)"),
        (
            (Q, K, K[:, 1:]),
            ValueError,
            r"InfoNCE: queries \(N, D\) and negatives \(K, D\) must agree on D; got \(20, 8\)",
        ),
    ],
)
def test_bad_input_is_named(arguments, error, message: str) -> None:
    with pytest.raises(error, match=message):
        InfoNCE(0.2)(*arguments)


def test_bad_settings_are_named() -> None:
    with pytest.raises(ValueError, match=r"InfoNCE: temperature must be finite and above 0; got 0\.0"):
        InfoNCE(0.0)
    with pytest.raises(ValueError, match="InfoNCE: strategy must be one of gather, ring; got 'star'"):
        InfoNCE(0.2, strategy="star")
