"""Colorization's loss: cross-entropy with soft labels, and weights by rarity, against the paper's formulas."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from fastssl.losses import rebalancing_weights, soft_cross_entropy
from fastssl.ops import encode_ab, gamut_bins


def labels(side: int = 3) -> tuple[Tensor, Tensor]:
    ab = 60 * torch.randn(2, 2, side, side, generator=torch.Generator().manual_seed(0))
    return encode_ab(ab, gamut_bins())


def logits(dtype: torch.dtype = torch.float32, side: int = 3) -> Tensor:
    return (4 * torch.randn(2, 313, side, side, generator=torch.Generator().manual_seed(1))).to(dtype)


def test_equals_equation_2_with_all_classes_written_out() -> None:
    (ids, weights), z = labels(), logits().double()
    loss = soft_cross_entropy(z, ids, weights.double())
    assert loss.shape == (2, 3, 3)
    for n, y, x in ((0, 0, 0), (1, 2, 1), (1, 0, 2)):
        target = torch.zeros(313, dtype=torch.float64)
        target[ids[n, :, y, x]] = weights[n, :, y, x].double()
        total = math.log(sum(math.exp(v) for v in z[n, :, y, x].tolist()))
        expected = -sum(t * (v - total) for t, v in zip(target.tolist(), z[n, :, y, x].tolist(), strict=True))
        assert loss[n, y, x].item() == pytest.approx(expected, rel=1e-6)


def test_the_gradient_is_softmax_less_target() -> None:
    (ids, weights), z = labels(), logits().double().requires_grad_()
    soft_cross_entropy(z, ids, weights.double()).sum().backward()
    target = torch.zeros_like(z).scatter_(1, ids, weights.double())
    torch.testing.assert_close(z.grad, z.detach().softmax(1) - target)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    ids, weights = labels()
    loss = soft_cross_entropy(logits(dtype), ids, weights)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, soft_cross_entropy(logits(dtype).float(), ids, weights))


def test_what_does_not_belong_together_is_named() -> None:
    ids, weights = labels()
    with pytest.raises(ValueError, match=r"logits \(N, B, H, W\), ids and weights .* must agree; got \(2, 313, 4, 4\)"):
        soft_cross_entropy(logits(side=4), ids, weights)
    with pytest.raises(ValueError, match="must agree"):
        soft_cross_entropy(logits(), ids, weights[:, :4])
    with pytest.raises(TypeError, match=r"ids must be int64; got torch.int32"):
        soft_cross_entropy(logits(), ids.int(), weights)
    with pytest.raises(TypeError, match="logits must be float32"):
        soft_cross_entropy(logits().long(), ids, weights)


def prior() -> Tensor:
    counts = torch.rand(313, generator=torch.Generator().manual_seed(2)) ** 8
    return counts / counts.sum()


def test_weights_equal_equation_4() -> None:
    bins, p = gamut_bins().tolist(), prior().double().tolist()
    smooth = [0.0] * 313
    for point, share in zip(bins, p, strict=True):
        near = [math.exp(-(math.dist(point, other) ** 2) / 50) for other in bins]
        for i, value in enumerate(near):
            smooth[i] += share * value / sum(near)
    weights = [1 / (0.5 * q + 0.5 / 313) for q in smooth]
    mean = sum(q * w for q, w in zip(smooth, weights, strict=True))
    expected = torch.tensor([w / mean for w in weights])
    torch.testing.assert_close(rebalancing_weights(prior(), gamut_bins()), expected, rtol=1e-5, atol=0)


def test_rare_colours_count_more_and_uniform_ones_alike() -> None:
    one = torch.zeros(313)
    one[150] = 1.0
    weights = rebalancing_weights(one, gamut_bins())
    assert weights.argmin() == 150
    assert weights.max() / weights.min() > 50
    all_uniform = rebalancing_weights(prior(), gamut_bins(), mix=1.0)
    torch.testing.assert_close(all_uniform, torch.ones(313))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prior": torch.full((313,), 0.5)}, r"together 1; got \(313\) with a sum of 156"),
        ({"prior": torch.full((4,), 0.25)}, r"a share for each of 313 bins, together 1; got \(4\)"),
        ({"mix": 0.0}, r"mix must lie in \(0, 1\] and sigma above 0; got 0.0 and 5.0"),
        ({"sigma": 0.0}, "got 0.5 and 0.0"),
    ],
)
def test_weights_of_what_is_no_prior(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rebalancing_weights(**{"prior": prior(), "bins": gamut_bins(), **change})
