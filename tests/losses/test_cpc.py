"""CPCLoss: a mean of InfoNCE over steps, of plain products as the paper has them."""

from __future__ import annotations

import pytest
import torch
from formulas import cpc

from fastssl.losses import CPCLoss, cpc_loss

P, T = torch.randn(2, 3, 10, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_equals_the_formula() -> None:
    torch.testing.assert_close(CPCLoss(1.0, normalized=True)(P, T), cpc(P, T))


def test_bad_input_is_named() -> None:
    with pytest.raises(
        ValueError, match=r"of one step, sample and feature at least; got \(3, 10, 4\) and \(2, 10, 4\)"
    ):
        CPCLoss(1.0)(P, T[:2])
    with pytest.raises(ValueError, match=r"CPCLoss: predictions must have shape \(steps, N, D\); got \(10, 4\)"):
        CPCLoss(1.0)(P[0], T[0])
    with pytest.raises(ValueError, match=r"CPCLoss: temperature must be finite and above 0; got 0\.0"):
        cpc_loss(P, T, temperature=0.0)
    with pytest.raises(ValueError, match="CPCLoss: strategy must be one of gather, ring; got 'star'"):
        CPCLoss(1.0, strategy="star")
