"""Encoders of two halves that share no weight: one sees lightness, the other colour (split-brain, arXiv:1611.09842)."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from fastssl.data.lab import to_lab
from fastssl.models import _check
from fastssl.models.alexnet import AlexNet
from fastssl.models.resnet import ResNet, Stem, resnet18

# L lies in [0, 100], a and b in about [-110, 110].
_MIDDLE, _SPREAD = 50.0, 50.0


class SplitEncoder(nn.Module):
    """A network whose channels fall into two groups: what one computes of lightness, the other never sees.

    Args:
        half: builds either half, called with ``stem``, ``width`` and ``channels``.
        stem: as that network has it.
        width: channels of the first layer of both halves together.

    Attributes:
        lightness: the half that sees L.
        color: the half that sees a and b.
        feature_dim: length of a feature vector, whose first half is lightness's.

    Raises:
        ValueError: for a width that does not fall into halves, or what the network refuses.
    """

    def __init__(self, half: partial[ResNet] | type[AlexNet], *, stem: Stem = "imagenet", width: int = 64) -> None:
        super().__init__()
        if width < 2 or width % 2:
            raise ValueError(f"the width of a split encoder must be even, for either half has half of it; got {width}")
        self.lightness = half(stem=stem, width=width // 2, channels=1)
        self.color = half(stem=stem, width=width // 2, channels=2)
        self.feature_dim = self.lightness.feature_dim + self.color.feature_dim

    def block_names(self) -> list[tuple[str, ...]]:
        """The blocks of both halves, a pair each, for `fastssl.models.depth.layers`."""
        pairs = zip(self.lightness.block_names(), self.color.block_names(), strict=True)
        return [
            (*(f"lightness.{name}" for name in light), *(f"color.{name}" for name in color)) for light, color in pairs
        ]

    def halves(self, lab: Tensor) -> tuple[Tensor, Tensor]:
        """The last maps of both halves, lightness first, each (N, feature_dim / 2, h, w), of (N, 3, H, W) CIELAB.

        Raises:
            ValueError: for images smaller than the halves take.
        """
        lightness, color = (lab[:, :1] - _MIDDLE) / _SPREAD, lab[:, 1:] / _SPREAD
        return self.lightness.maps(lightness), self.color.maps(color)

    def forward(self, x: Tensor) -> Tensor:
        """x: (N, 3, H, W) floating-point images, normalised by ImageNet's mean and deviation. Returns (N, feature_dim).

        Either half's map averaged over positions, one behind the other.

        Raises:
            ValueError, TypeError: naming the shape or dtype received, if it is another or too small.
        """
        _check.images("split encoder", x)
        return torch.cat([maps.mean(dim=(2, 3)) for maps in self.halves(to_lab(x))], dim=1)


ENCODERS = {"alexnet_split": partial(SplitEncoder, AlexNet), "resnet18_split": partial(SplitEncoder, resnet18)}
