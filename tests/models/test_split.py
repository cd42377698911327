"""Encoders of two halves: who sees what, shapes, and what is refused."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fastssl import models
from fastssl.data.lab import from_rgb, grey, to_lab
from fastssl.models.split import SplitEncoder

NAMES = ("alexnet_split", "resnet18_split")


def views(batch: int = 3, size: int = 16) -> Tensor:
    return from_rgb(torch.rand(batch, 3, size, size, generator=torch.Generator().manual_seed(0)))


def small(name: str) -> SplitEncoder:
    torch.manual_seed(0)
    encoder = models.get(name)(stem="cifar", width=8).eval()
    assert isinstance(encoder, SplitEncoder)
    return encoder


@pytest.mark.parametrize(("name", "dim"), [*zip(NAMES, (32, 64), strict=True)])
def test_features_are_both_halves(name: str, dim: int) -> None:
    encoder, x = small(name), views()
    features = encoder(x)
    assert features.shape == (3, dim) == (3, encoder.feature_dim)
    lightness, color = encoder.halves(to_lab(x))
    torch.testing.assert_close(features, torch.cat([lightness.mean((2, 3)), color.mean((2, 3))], 1))


@pytest.mark.parametrize("name", NAMES)
def test_a_half_never_sees_what_the_other_sees(name: str) -> None:
    encoder = small(name)
    lab = to_lab(views()).requires_grad_()
    lightness, color = encoder.halves(lab)
    of_lightness, of_color = (torch.autograd.grad(half.sum(), lab)[0] for half in (lightness, color))
    assert of_lightness[:, 0].any()
    assert not of_lightness[:, 1:].any()
    assert of_color[:, 1:].any()
    assert not of_color[:, 0].any()


def test_the_lightness_half_sees_grey_and_colour_alike() -> None:
    encoder, x = small("alexnet_split"), views()
    half = encoder.feature_dim // 2
    torch.testing.assert_close(encoder(x)[:, :half], encoder(grey(to_lab(x)[:, :1]))[:, :half], atol=1e-3, rtol=1e-3)


def test_options_are_those_of_the_halves() -> None:
    assert models.options("alexnet_split", width=32) == {"stem": "imagenet", "width": 32}
    assert small("resnet18_split").lightness.conv1.weight.shape == (4, 1, 3, 3)


def test_what_cannot_be_is_named() -> None:
    for width in (0, 7):
        with pytest.raises(ValueError, match=f"must be even, for either half has half of it; got {width}"):
            models.get("alexnet_split")(width=width)
    with pytest.raises(ValueError, match="stem must be one of"):
        models.get("resnet18_split")(stem="other")
    with pytest.raises(ValueError, match=r"split encoder: images must be \(N, 3, H, W\); got \(2, 1, 16, 16\)"):
        small("alexnet_split")(torch.zeros(2, 1, 16, 16))
    with pytest.raises(ValueError, match="images must have at least 7 x 7 pixels"):
        small("alexnet_split")(torch.zeros(2, 3, 6, 6))
