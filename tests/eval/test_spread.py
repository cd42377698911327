from __future__ import annotations

import math

import pytest
import torch

from fastssl.eval.spread import effective_rank, feature_std


def gaussian(rows: int, features: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, features, generator=torch.Generator().manual_seed(seed))


def test_the_deviation_is_one_where_rows_point_anywhere_and_nothing_where_they_agree():
    assert feature_std(gaussian(4000, 16)) == pytest.approx(1.0, abs=0.01)
    assert feature_std(torch.full((8, 16), 3.0)) == pytest.approx(0.0, abs=1e-6)
    assert feature_std(torch.zeros(8, 16)) == 0.0


def test_the_deviation_does_not_depend_on_lengths():
    rows = gaussian(50, 16)
    assert feature_std(rows * torch.rand(50, 1)) == pytest.approx(feature_std(rows), rel=1e-5)


def test_its_square_is_one_less_the_mean_cosine():
    rows = gaussian(300, 32) + 1.0
    unit = rows / rows.norm(dim=1, keepdim=True)
    assert feature_std(rows) ** 2 == pytest.approx(1 - (unit @ unit.T).mean().item(), rel=0.05)


def test_the_rank_is_rankmes():
    """Equation 1, with singular values that are known."""
    values = [4.0, 2.0, 1.0, 1.0]
    left, _ = torch.linalg.qr(gaussian(10, 4).double())
    right, _ = torch.linalg.qr(gaussian(6, 4, seed=1).double())
    shares = [value / 8 for value in values]
    expected = math.exp(-sum(p * math.log(p) for p in shares))
    assert effective_rank((left * torch.tensor(values).double()) @ right.T) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(("rows", "features"), [(20, 8), (8, 20)])
def test_the_rank_is_at_most_that_of_the_matrix(rows, features):
    assert effective_rank(torch.eye(rows, features)) == pytest.approx(8, rel=1e-4)
    assert effective_rank(torch.ones(rows, features)) == pytest.approx(1, rel=1e-4)
    assert effective_rank(torch.zeros(rows, features)) == pytest.approx(1, rel=1e-4)


def test_narrow_features_are_widened():
    rows = gaussian(40, 8).bfloat16()
    assert effective_rank(rows) == effective_rank(rows.float())
    assert feature_std(rows) == feature_std(rows.float())
