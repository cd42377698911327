"""CPCLoss: a mean of InfoNCE over steps, of plain products as the paper has them."""

from __future__ import annotations

import pytest
import torch
from formulas import cpc

from fastssl.losses import CPCLoss, cpc_loss

P, T = torch.randn(2, 3, 10, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_equals_the_formula() -> None:
    torch.testing.assert_close(CPCLoss(1.0, normalized=True)(P, T), cpc(P, T))


def test_steps_may_differ_in_samples() -> None:
    counts = (10, 6, 3)
    predictions, targets = ([x[k, :n] for k, n in enumerate(counts)] for x in (P, T))
    expected = sum(cpc(P[k : k + 1, :n], T[k : k + 1, :n]) for k, n in enumerate(counts)) / 3
    torch.testing.assert_close(CPCLoss(1.0, normalized=True)(predictions, targets), expected)
    torch.testing.assert_close(CPCLoss(0.3)(list(P), list(T)), CPCLoss(0.3)(P, T))


def test_bad_steps_are_named() -> None:
    with pytest.raises(ValueError, match=r"both be tensors, or of as many steps; got 3 steps and 2 steps"):
        CPCLoss(1.0)(list(P), list(T)[:2])
    with pytest.raises(ValueError, match=r"as many steps; got a tensor and 3 steps"):
        CPCLoss(1.0)(P, list(T))
    with pytest.raises(ValueError, match=r"CPCLoss: needs at least one step; got none"):
        CPCLoss(1.0)([], [])
    with pytest.raises(ValueError, match=r"CPCLoss: predictions.* got \(10, 4\) and \(9, 4\)"):
        CPCLoss(1.0)([P[0]], [T[0, :9]])


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
