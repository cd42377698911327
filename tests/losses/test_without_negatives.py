"""The losses without negatives against their formulas."""

from __future__ import annotations

import pytest
import torch
from formulas import barlow_twins, koleo, negative_cosine, vicreg

from fastssl.losses import BarlowTwins, KoLeo, NegativeCosineSimilarity, VICReg

Z0, Z1 = torch.randn(2, 12, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_negative_cosine() -> None:
    torch.testing.assert_close(NegativeCosineSimilarity()(Z0, 3 * Z1), negative_cosine(Z0, Z1))
    torch.testing.assert_close(NegativeCosineSimilarity()(Z0, Z0), torch.tensor(-1.0, dtype=torch.float64))


def test_barlow_twins() -> None:
    torch.testing.assert_close(BarlowTwins(0.01)(Z0, Z1), barlow_twins(Z0, Z1, 0.01))


def test_vicreg() -> None:
    torch.testing.assert_close(VICReg(2.0, 3.0, 4.0)(Z0, Z1), vicreg(Z0, Z1, 2.0, 3.0, 4.0))


def test_koleo() -> None:
    torch.testing.assert_close(KoLeo()(Z0), koleo(Z0), rtol=1e-6, atol=0)


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


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (
            lambda: BarlowTwins(-0.1),
            ValueError,
            "BarlowTwins: redundancy_weight must be finite and at least 0; got -0.1",
        ),
        (lambda: BarlowTwins("1"), TypeError, "BarlowTwins: redundancy_weight must be a number; got str"),
        (lambda: VICReg(variance=float("nan")), ValueError, "VICReg: variance must be finite and at least 0; got nan"),
    ],
)
def test_weights_that_are_none_are_refused(make, error, message: str) -> None:
    with pytest.raises(error, match=message):
        make()


def test_bad_input_is_named() -> None:
    with pytest.raises(ValueError, match="KoLeo: needs at least two rows; got 1"):
        KoLeo()(Z0[:1])
    for loss in (NegativeCosineSimilarity(), BarlowTwins(), VICReg()):
        with pytest.raises(ValueError, match=r"must have the same shape \(N, D\); got \(12, 5\) and \(11, 5\)"):
            loss(Z0, Z1[1:])
