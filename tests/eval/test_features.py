from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from fastssl.data import plans
from fastssl.errors import UserError
from fastssl.eval.features import check_features, check_labelled, evaluating, extract


class Channels(nn.Module):
    """(N, 3, H, W) to the mean of each channel."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[torch.Size] = []

    def forward(self, x: Tensor) -> Tensor:
        self.batches.append(x.shape)
        return x.mean(dim=(2, 3))


def images(count: int, side: int = 8) -> Tensor:
    return torch.randint(256, (count, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_features_are_of_normalised_unaugmented_images():
    data = images(5)
    plan = plans.evaluation(8)
    expected = (data.double().mean(dim=(2, 3)) / 255 - torch.tensor(plan.mean).double()) / torch.tensor(
        plan.std
    ).double()
    features = extract(Channels(), data, size=8)
    assert features.dtype == torch.float32
    assert not features.requires_grad
    torch.testing.assert_close(features.double(), expected, rtol=0, atol=1e-5)


def test_batches_and_resizing():
    encoder = Channels()
    assert extract(encoder, images(5), size=4, batch_size=2).shape == (5, 3)
    assert encoder.batches == [(2, 3, 4, 4), (2, 3, 4, 4), (1, 3, 4, 4)]


def test_batch_norm_neither_learns_nor_depends_on_the_batch():
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten())
    before = encoder[1].running_mean.clone()
    whole, split = (extract(encoder, images(6), size=8, batch_size=size) for size in (6, 1))
    torch.testing.assert_close(whole, split)
    assert torch.equal(encoder[1].running_mean, before)


def test_every_part_returns_to_its_own_mode():
    encoder = nn.Sequential(Channels(), nn.BatchNorm1d(3))
    encoder[1].eval()
    extract(encoder, images(2), size=8)
    assert [part.training for part in encoder.modules()] == [True, True, False]
    with pytest.raises(ZeroDivisionError), evaluating(encoder):
        assert not encoder.training
        _ = 1 / 0
    assert [part.training for part in encoder.modules()] == [True, True, False]


@pytest.mark.parametrize(
    ("bad", "error"),
    [
        (torch.zeros(2, 3, 8, 8), TypeError),
        (images(2)[0], ValueError),
        (images(2)[:, :1], ValueError),
        (images(0), ValueError),
    ],
)
def test_refuses_what_is_not_images(bad, error):
    with pytest.raises(error, match="images must be"):
        extract(Channels(), bad, size=8)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_refuses_features_of_a_diverged_encoder(value):
    features = torch.zeros(4, 3)
    features[1:3, 0] = value
    with pytest.raises(UserError, match="here: 2 of 4 feature vectors hold NaN or infinity; .* lower learning rate"):
        check_features("here", features)


@pytest.mark.parametrize(
    ("features", "labels", "error", "message"),
    [
        (torch.zeros(3), torch.zeros(3).long(), ValueError, r"got \(3,\)"),
        (torch.zeros(0, 2), torch.zeros(0).long(), ValueError, r"got \(0, 2\)"),
        (torch.zeros(3, 2).long(), torch.zeros(3).long(), TypeError, "int64"),
        (torch.zeros(3, 2), torch.zeros(4).long(), ValueError, r"\(3, 2\) and \(4,\)"),
        (torch.zeros(3, 2), torch.zeros(3), TypeError, "float32"),
        (torch.zeros(3, 2), torch.tensor([0, 1, 5]), ValueError, "0 to 5"),
        (torch.zeros(3, 2), torch.tensor([0, -1, 4]), ValueError, "-1 to 4"),
    ],
)
def test_refuses_what_cannot_be_scored(features, labels, error, message):
    with pytest.raises(error, match=f"^here: .*{message}"):
        check_labelled("here", features, labels, num_classes=5)
