from __future__ import annotations

from typing import Any

import pytest
import torch
from other_libraries import load_or_skip
from torch import Tensor, nn

from fastssl import models
from fastssl.models.alexnet import AlexNet


def test_its_convolutions_and_pools_are_torchvisions() -> None:
    theirs = load_or_skip("torchvision.models").alexnet(weights=None).features.double()
    ours = AlexNet().double().eval()
    convolutions = [layer for layer in theirs if isinstance(layer, nn.Conv2d)]
    for i, conv in enumerate(convolutions, start=1):
        nn.init.zeros_(conv.bias)
        getattr(ours, f"conv{i}").weight.data.copy_(conv.weight.data)
        getattr(ours, f"bn{i}").running_var.fill_(1 - 1e-5)  # with its epsilon: the identity
    x = torch.randn(2, 3, 96, 80, dtype=torch.float64)
    with torch.no_grad():
        expected = theirs[:-1](x)  # but for the last pool
        torch.testing.assert_close(ours.maps(x), expected, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(ours(x), expected.mean((2, 3)), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("stem", "size", "side"), [("imagenet", 224, 13), ("imagenet", 31, 1), ("cifar", 32, 7)])
def test_maps_and_features(stem: Any, size: int, side: int) -> None:
    encoder = models.get("alexnet")(stem=stem, width=4).eval()
    x = torch.randn(2, 3, size, size)
    assert encoder.maps(x).shape == (2, 16, side, side)
    assert encoder(x).shape == (2, models.feature_dim(encoder))


def test_halves_of_other_channels_make_a_whole() -> None:
    lightness, colour = (AlexNet(stem="cifar", width=4, channels=channels) for channels in (1, 2))
    lab = torch.randn(2, 3, 16, 16)
    assert lightness(lab[:, :1]).shape == colour(lab[:, 1:]).shape == (2, 16)
    with pytest.raises(ValueError, match=r"images must be \(N, 2, H, W\); got \(2, 3, 16, 16\)"):
        colour(lab)


def test_every_parameter_gets_a_gradient() -> None:
    encoder = AlexNet(stem="cifar", width=4)
    encoder(torch.randn(4, 3, 16, 16)).square().sum().backward()
    assert all(p.grad is not None and bool(p.grad.any()) for p in encoder.parameters())


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (torch.zeros(2, 1, 32, 32), ValueError, r"\(2, 1, 32, 32\)"),
        (torch.zeros(2, 3, 32, 32, dtype=torch.uint8), TypeError, "uint8"),
        (torch.zeros(2, 3, 40, 30), ValueError, "at least 31 x 31 pixels with the stem 'imagenet'; got 40 x 30"),
    ],
)
def test_refuses_what_it_cannot_take(x: Tensor, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        AlexNet(width=4)(x)


def test_the_least_side_is_the_least_that_works() -> None:
    assert AlexNet(stem="cifar", width=2).eval().maps(torch.zeros(1, 3, 7, 7)).shape[2:] == (1, 1)
    with pytest.raises(ValueError, match="at least 7 x 7"):
        AlexNet(stem="cifar", width=2)(torch.zeros(1, 3, 6, 7))


def test_refuses_settings_that_cannot_be() -> None:
    with pytest.raises(ValueError, match="got 'cifer'"):
        AlexNet(stem="cifer")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="got 0 and 3"):
        AlexNet(width=0)
