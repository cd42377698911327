"""The losses without negatives against their formulas."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import normalize

from fastssl.losses import BarlowTwins, KoLeo, NegativeCosineSimilarity, VICReg

Z0, Z1 = torch.randn(2, 12, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_negative_cosine() -> None:
    want = -(normalize(Z0, dim=1) * normalize(Z1, dim=1)).sum(1).mean()
    torch.testing.assert_close(NegativeCosineSimilarity()(Z0, 3 * Z1), want)
    torch.testing.assert_close(NegativeCosineSimilarity()(Z0, Z0), torch.tensor(-1.0, dtype=torch.float64))


def test_barlow_twins() -> None:
    norm = torch.nn.BatchNorm1d(5, affine=False).double()
    correlation = norm(Z0).T @ norm(Z1) / 12
    want = sum(
        (1 - correlation[i, i]) ** 2 if i == j else 0.01 * correlation[i, j] ** 2 for i in range(5) for j in range(5)
    )
    torch.testing.assert_close(BarlowTwins(0.01)(Z0, Z1), want)


def test_vicreg() -> None:
    want = 2.0 * (Z0 - Z1).square().mean()
    for z in (Z0, Z1):
        covariance = z.T.cov()
        want = want + 3.0 * torch.relu(1 - (z.var(0) + 1e-4).sqrt()).mean() / 2
        want = want + 4.0 * (covariance.square().sum() - covariance.diagonal().square().sum()) / 5
    torch.testing.assert_close(VICReg(2.0, 3.0, 4.0)(Z0, Z1), want)


def test_koleo() -> None:
    rows = normalize(Z0, dim=1)
    distances = torch.cdist(rows, rows).fill_diagonal_(torch.inf)
    torch.testing.assert_close(KoLeo()(Z0), -distances.amin(1).log().mean(), rtol=1e-6, atol=0)


def test_koleo_of_rows_that_are_alike_is_finite() -> None:
    rows = torch.ones(4, 3, requires_grad=True)
    loss = KoLeo()(rows)
    loss.backward()
    assert loss.isfinite()
    assert rows.grad.isfinite().all()


@pytest.mark.parametrize("loss", [BarlowTwins(), VICReg()])
def test_one_sample_has_no_variance(loss) -> None:
    with pytest.raises(
        ValueError, match=f"{type(loss).__name__}: needs at least two samples, for their variance; got 1"
    ):
        loss(Z0[:1], Z1[:1])


@pytest.mark.parametrize("loss", [BarlowTwins(), VICReg(), lambda z0, z1: KoLeo()(z0)])
def test_autocast_changes_nothing(loss) -> None:
    views = Z0.float(), Z1.float()
    with torch.autocast("cpu", torch.bfloat16):
        got = loss(*views)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, loss(*views))


def test_bad_input_is_named() -> None:
    with pytest.raises(ValueError, match="KoLeo: needs at least two rows; got 1"):
        KoLeo()(Z0[:1])
    for loss in (NegativeCosineSimilarity(), BarlowTwins(), VICReg()):
        with pytest.raises(ValueError, match=r"must have the same shape \(N, D\); got \(12, 5\) and \(11, 5\)"):
            loss(Z0, Z1[1:])
