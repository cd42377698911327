"""From feature maps to images, and the network that judges them: for tasks that predict pixels."""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastssl.models import _check


def _dcgan_weights(module: nn.Module) -> None:
    """Normal weights of deviation 0.02, around 1 for scales (DCGAN, arXiv:1511.06434, section 4)."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.normal_(part.weight, std=0.02)
        elif isinstance(part, nn.BatchNorm2d):
            nn.init.normal_(part.weight, 1.0, 0.02)


class ChannelwiseLinear(nn.Module):
    """A linear layer over the positions of each channel by itself (context encoders, arXiv:1604.07379, section 3.1).

    It carries what one corner of a map knows to the other with C n^4 weights, where a fully connected layer has
    C^2 n^4. A 1x1 convolution after it mixes the channels, as in the paper.

    Args:
        channels: C. side: n, rows and columns of the map.
    Raises:
        ValueError: for a number below 1.
    """

    def __init__(self, channels: int, side: int) -> None:
        super().__init__()
        if channels < 1 or side < 1:
            raise ValueError(f"channels and side must be at least 1; got {channels} and {side}")
        self.channels, self.side, positions = channels, side, side**2
        self.weight = nn.Parameter(torch.empty(channels, positions, positions))
        self.bias = nn.Parameter(torch.zeros(channels, 1, positions))
        self.mix = nn.Conv2d(channels, channels, 1)
        # each channel's matrix is a layer of its own: the bounds of nn.Linear
        nn.init.uniform_(self.weight, -(positions**-0.5), positions**-0.5)

    def forward(self, maps: Tensor) -> Tensor:
        """maps: (N, C, n, n). Returns (N, C, n, n).

        Raises:
            ValueError: naming the shape received, if it is another.
        """
        if maps.ndim != 4 or tuple(maps.shape[1:]) != (self.channels, self.side, self.side):
            raise ValueError(f"maps must be (N, {self.channels}, {self.side}, {self.side}); got {tuple(maps.shape)}")
        by_channel = maps.flatten(2).transpose(0, 1)  # (C, N, n n)
        spread = torch.baddbmm(self.bias.to(by_channel.dtype), by_channel, self.weight.transpose(1, 2))
        mixed: Tensor = self.mix(spread.transpose(0, 1).reshape(maps.shape))
        return mixed


class ConvDecoder(nn.Module):
    """Convolutions that double the side of a map again and again, half as many channels each time.

    The up-convolutions of DCGAN's generator (arXiv:1511.06434, figure 1), which context encoders take for their decoder
    (arXiv:1604.07379, section 3.1): 4x4 kernels of stride 2, batch normalisation and ReLU, neither after the last.

    Args:
        in_channels: of the map.
        out_channels: of the output: 3 for RGB, or as many as there are classes of colours.
        doublings: k of the 2^k by which the sides grow.
        width: channels after the first doubling; no layer but the last has fewer than 16.
    Raises:
        ValueError: for a number below 1.
    """

    def __init__(self, in_channels: int, out_channels: int, *, doublings: int, width: int = 256) -> None:
        super().__init__()
        if min(in_channels, out_channels, doublings, width) < 1:
            raise ValueError(
                f"a decoder needs numbers of at least 1; got in_channels={in_channels}, out_channels={out_channels}, "
                f"doublings={doublings}, width={width}"
            )
        hidden = [max(min(16, width), width >> i) for i in range(doublings - 1)]
        steps: list[nn.Module] = []
        for i, (inputs, outputs) in enumerate(pairwise([in_channels, *hidden, out_channels]), start=1):
            last = i == doublings
            steps.append(nn.ConvTranspose2d(inputs, outputs, 4, stride=2, padding=1, bias=last))
            if not last:
                steps += [nn.BatchNorm2d(outputs), nn.ReLU()]
        self.layers = nn.Sequential(*steps)
        _dcgan_weights(self)

    def forward(self, maps: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """maps: (N, in_channels, h, w). Returns (N, out_channels, 2^k h, 2^k w), or that resized to ``size``, bilinear.

        The numbers are of any sign and size: what they mean is for the loss to say.
        """
        out: Tensor = self.layers(maps)
        if size is None or tuple(out.shape[2:]) == size:
            return out
        return F.interpolate(out, size=size, mode="bilinear", align_corners=False)


class PixelHead(nn.Module):
    """Numbers for each place of a map, or of one 2^k times as fine: the last layers of colorization's network.

    A 4x4 up-convolution of stride 2 for each doubling, or a 3x3 convolution where there is none, with batch
    normalisation and ReLU, and a 1x1 convolution behind them (arXiv:1603.08511, table 4).

    Args:
        in_channels: of the map.
        out_channels: of the output, as many as there are classes.
        doublings: k.
        width: channels between.
    Raises:
        ValueError: for doublings below 0 or another number below 1.
    """

    def __init__(self, in_channels: int, out_channels: int, *, doublings: int, width: int = 256) -> None:
        super().__init__()
        if min(in_channels, out_channels, width) < 1 or doublings < 0:
            raise ValueError(
                f"a pixel head needs channels and width of at least 1 and doublings of at least 0; got "
                f"in_channels={in_channels}, out_channels={out_channels}, width={width}, doublings={doublings}"
            )
        steps: list[nn.Module] = []
        for inputs in [in_channels, *[width] * (doublings - 1)]:
            if doublings:
                steps.append(nn.ConvTranspose2d(inputs, width, 4, stride=2, padding=1, bias=False))
            else:
                steps.append(nn.Conv2d(inputs, width, 3, padding=1, bias=False))
            steps += [nn.BatchNorm2d(width), nn.ReLU()]
        self.layers = nn.Sequential(*steps, nn.Conv2d(width, out_channels, 1))

    def forward(self, maps: Tensor) -> Tensor:
        """maps: (N, in_channels, h, w). Returns (N, out_channels, 2^k h, 2^k w)."""
        out: Tensor = self.layers(maps)
        return out


class Discriminator(nn.Module):
    """DCGAN's judge of images (arXiv:1511.06434): the adversary of context encoders (arXiv:1604.07379, section 3.2).

    4x4 convolutions of stride 2 with leaky ReLU, twice as many channels each time, until fewer than 8 x 8 positions are
    left; one convolution over all of those gives the logit. Batch normalisation but in the first and last.

    Args:
        size: side of the images, in pixels, at least 8.
        channels: of the images.
        width: channels of the first convolution; no layer has more than 8 times as many.
    Raises:
        ValueError: for a size below 8 or another number below 1.
    """

    def __init__(self, size: int, *, channels: int = 3, width: int = 64) -> None:
        super().__init__()
        if size < 8 or channels < 1 or width < 1:
            raise ValueError(
                f"a discriminator needs a size of at least 8 and channels and width of at least 1; "
                f"got size={size}, channels={channels}, width={width}"
            )
        self.size, self.channels = size, channels
        steps: list[nn.Module] = []
        inputs, outputs, side = channels, width, size
        while side >= 8:
            normalised = bool(steps)
            steps.append(nn.Conv2d(inputs, outputs, 4, stride=2, padding=1, bias=not normalised))
            steps += [nn.BatchNorm2d(outputs)] if normalised else []
            steps.append(nn.LeakyReLU(0.2))
            inputs, outputs, side = outputs, min(2 * outputs, 8 * width), side // 2
        self.layers = nn.Sequential(*steps, nn.Conv2d(inputs, 1, side))
        _dcgan_weights(self)

    def forward(self, images: Tensor) -> Tensor:
        """images: (N, channels, size, size). Returns (N,) logits, positive for those that look real.

        Raises:
            ValueError, TypeError: naming the shape or dtype received, if it is another.
        """
        _check.images("discriminator", images, self.channels)
        if tuple(images.shape[2:]) != (self.size, self.size):
            raise ValueError(
                f"discriminator: images must have {self.size} x {self.size} pixels; "
                f"got {images.shape[2]} x {images.shape[3]}"
            )
        logits: Tensor = self.layers(images)
        return logits.flatten()
