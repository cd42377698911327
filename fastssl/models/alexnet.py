"""AlexNet (Krizhevsky et al., as in arXiv:1404.5997) without its linear layers: encoder of the classic pretext tasks.

The five convolutions and two of the three max-pools are torchvision's. Batch normalisation, without which it hardly
trains from scratch, follows each convolution, as in the networks of colorization and split-brain (arXiv:1603.08511,
1611.09842), and an average over positions stands for the last pool.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import get_args

import torch.nn.functional as F
from torch import Tensor, nn

from fastssl.models import _check
from fastssl.models.resnet import Stem

# Sides below these leave no pixel after the pools.
_LEAST_SIDE = {"imagenet": 31, "cifar": 7}


class AlexNet(nn.Module):
    """AlexNet's convolutions.

    Args:
        stem: "imagenet" begins by an 11x11 convolution of stride 4; "cifar", for images of about 32 to 64 pixels, by a
            3x3 convolution of stride 1.
        width: channels of the first convolution; 64 is the published network. The others have 3, 6, 4 and 4 times as
            many, and half as wide is either half of a split-brain autoencoder.
        channels: of the images: 3, or 1 for lightness alone and 2 for colour alone.

    Attributes:
        feature_dim: length of a feature vector, ``4 * width``.

    Raises:
        ValueError: for a stem of another name, or a number below 1.
    """

    def __init__(self, *, stem: Stem = "imagenet", width: int = 64, channels: int = 3) -> None:
        super().__init__()
        if stem not in get_args(Stem):
            raise ValueError(f"stem must be one of {', '.join(get_args(Stem))}; got {stem!r}")
        if width < 1 or channels < 1:
            raise ValueError(f"width and channels must be at least 1; got {width} and {channels}")
        self.channels, self.stem, self.feature_dim = channels, stem, 4 * width
        first = (11, 4, 2) if stem == "imagenet" else (3, 1, 1)
        self.conv1 = nn.Conv2d(channels, width, *first, bias=False)
        self.conv2 = nn.Conv2d(width, 3 * width, 5, padding=2, bias=False)
        self.conv3 = nn.Conv2d(3 * width, 6 * width, 3, padding=1, bias=False)
        self.conv4 = nn.Conv2d(6 * width, 4 * width, 3, padding=1, bias=False)
        self.conv5 = nn.Conv2d(4 * width, 4 * width, 3, padding=1, bias=False)
        for i, conv in enumerate((self.conv1, self.conv2, self.conv3, self.conv4, self.conv5), start=1):
            nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
            self.add_module(f"bn{i}", nn.BatchNorm2d(conv.out_channels))

    def block_names(self) -> list[tuple[str, ...]]:
        """The convolutions, each with its normalisation, for `fastssl.models.depth.layers`."""
        return [(f"conv{i}", f"bn{i}") for i in range(1, 6)]

    def stages(self, x: Tensor) -> Iterator[Tensor]:
        """The map after each of the five convolutions, of the first two pooled; the last is that of :meth:`maps`."""
        _check.images("alexnet", x, self.channels)
        least = _LEAST_SIDE[self.stem]
        if min(x.shape[2:]) < least:
            raise ValueError(
                f"alexnet: images must have at least {least} x {least} pixels with the stem {self.stem!r}; "
                f"got {x.shape[2]} x {x.shape[3]}"
            )
        for i in range(1, 6):
            x = F.relu(getattr(self, f"bn{i}")(getattr(self, f"conv{i}")(x)))
            if i <= 2:
                x = F.max_pool2d(x, 3, stride=2)
            yield x

    def maps(self, x: Tensor) -> Tensor:
        """x: (N, channels, H, W) floating-point images, normalised. Returns the last map, (N, feature_dim, h, w).

        Each of h and w is about a 16th of the image's with the stem "imagenet" (13 of 224), a 4th with "cifar".

        Raises:
            ValueError, TypeError: naming the shape or dtype received, if it is another or smaller than the pools take.
        """
        return deque(self.stages(x), maxlen=1)[0]

    def forward(self, x: Tensor) -> Tensor:
        """x: (N, channels, H, W), as for :meth:`maps`. Returns (N, feature_dim), the map averaged over positions."""
        return self.maps(x).mean(dim=(2, 3))


ENCODERS = {"alexnet": AlexNet}
