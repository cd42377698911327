from __future__ import annotations

import contextlib

import pytest
import torch
from torch import Tensor, nn

from fastssl.data import plans
from fastssl.eval.features import evaluating, extract


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
    plan = plans.eval(8)
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


def test_progress_is_told_after_each_batch():
    told = []
    extract(Channels(), images(5), size=4, batch_size=2, progress=lambda *done: told.append(done))
    assert told == [(2, 5), (4, 5), (5, 5)]


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
    with contextlib.suppress(InterruptedError), evaluating(encoder):
        assert not encoder.training
        raise InterruptedError
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
    with pytest.raises(error, match="images must"):
        extract(Channels(), bad, size=8)
