"""CLIP's and SigLIP's losses as modules: the ops on unit rows."""

from __future__ import annotations

import pytest
import torch
from formulas import clip, siglip
from torch.nn.functional import normalize

from fastssl.losses import ClipLoss, SigLipLoss

A, B = torch.randn(2, 12, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_clip_equals_the_formula() -> None:
    want = clip(A, B, 7.0)
    torch.testing.assert_close(ClipLoss()(2 * A, B, 7.0), want)
    rows = normalize(A, dim=1), normalize(B, dim=1)
    torch.testing.assert_close(ClipLoss(normalized=True)(*rows, torch.tensor(7.0, dtype=torch.float64)), want)


def test_siglip_equals_the_formula() -> None:
    torch.testing.assert_close(SigLipLoss()(2 * A, B, 7.0, -3.0), siglip(A, B, 7.0, -3.0))


@pytest.mark.parametrize("loss", [lambda a, b: ClipLoss()(a, b, 7.0), lambda a, b: SigLipLoss()(a, b, 7.0, -3.0)])
def test_other_numbers_of_texts_are_refused(loss) -> None:
    with pytest.raises(
        ValueError, match=r"Loss: a and b must have the same shape \(N, D\); got \(12, 8\) and \(5, 8\)"
    ):
        loss(A, B[:5])
