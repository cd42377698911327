"""Residual networks (He et al., arXiv:1512.03385) without their classifier; parameters named as torchvision names them.

torchvision's ``resnet18(...)`` with ``fc = nn.Identity()`` loads the state dict of ours with ``strict=True``, and the
other way round. As there, the bottleneck strides in its 3x3 convolution, not in its first ("ResNet v1.5").
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from functools import partial
from typing import ClassVar, Literal, get_args

import torch.nn.functional as F
from torch import Tensor, nn

from fastssl.models import _check

Stem = Literal["imagenet", "cifar"]


def _conv(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)


def _shortcut(inputs: int, outputs: int, stride: int) -> nn.Sequential | None:
    """The projection of a block's input where its output has another shape (arXiv:1512.03385, option B); else None."""
    if stride == 1 and inputs == outputs:
        return None
    return nn.Sequential(_conv(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut: the block of ResNet-18 and -34."""

    expansion: ClassVar[int] = 1

    def __init__(self, inputs: int, planes: int, stride: int) -> None:
        super().__init__()
        self.conv1 = _conv(inputs, planes, 3, stride)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = _conv(planes, planes, 3)
        self.bn2 = nn.BatchNorm2d(planes)
        self.downsample = _shortcut(inputs, planes, stride)

    def forward(self, x: Tensor) -> Tensor:
        """x: (N, inputs, H, W). Returns (N, planes, H / stride, W / stride)."""
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)))


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 convolutions and a shortcut: the block of ResNet-50."""

    expansion: ClassVar[int] = 4

    def __init__(self, inputs: int, planes: int, stride: int) -> None:
        super().__init__()
        outputs = planes * self.expansion
        self.conv1 = _conv(inputs, planes, 1)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = _conv(planes, planes, 3, stride)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv3 = _conv(planes, outputs, 1)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.downsample = _shortcut(inputs, outputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        """x: (N, inputs, H, W). Returns (N, 4 * planes, H / stride, W / stride)."""
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)))


class ResNet(nn.Module):
    """A residual network that ends at its pooled features.

    Args:
        block: :class:`BasicBlock` or :class:`Bottleneck`.
        depths: blocks in each of the four stages.
        stem: "imagenet" is a 7x7 convolution of stride 2 and a max-pool; "cifar", for images of about 32 to 64 pixels,
            a 3x3 convolution of stride 1 and no pool (arXiv:2002.05709, appendix B.9).
        width: channels of the first stage; 64 is the published network, fewer suit a small machine.
        max_stride: a stage that would make the map coarser than one position in so many pixels keeps the resolution it
            gets; 8 where positions are compared (arXiv:1806.09594), and 32, the published network, never matters.
        channels: of the images: 3, or 1 for lightness alone and 2 for colour alone.

    Attributes:
        feature_dim: length of a feature vector, ``8 * width * block.expansion``.

    Raises:
        ValueError: for a stem of another name, a width or channels below 1, or a max_stride below that of the stem.
    """

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        depths: tuple[int, int, int, int],
        *,
        stem: Stem = "imagenet",
        width: int = 64,
        max_stride: int = 32,
        channels: int = 3,
    ) -> None:
        super().__init__()
        if stem not in get_args(Stem):
            raise ValueError(f"stem must be one of {', '.join(get_args(Stem))}; got {stem!r}")
        if width < 1:
            raise ValueError(f"width, the channels of the first stage, must be at least 1; got {width}")
        if channels < 1:
            raise ValueError(f"channels must be at least 1; got {channels}")
        stride = 4 if stem == "imagenet" else 1
        if max_stride < stride:
            raise ValueError(f"max_stride must be at least {stride} with the stem {stem!r}; got {max_stride}")
        strides = [2 if stride * 2**i <= max_stride else 1 for i in (1, 2, 3)]
        self.channels = channels
        self.conv1 = _conv(channels, width, 7, stride=2) if stem == "imagenet" else _conv(channels, width, 3)
        self.bn1 = nn.BatchNorm2d(width)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1) if stem == "imagenet" else nn.Identity()
        expansion = block.expansion
        self.layer1 = self._stage(block, width, width, depths[0], 1)
        self.layer2 = self._stage(block, width * expansion, 2 * width, depths[1], strides[0])
        self.layer3 = self._stage(block, 2 * width * expansion, 4 * width, depths[2], strides[1])
        self.layer4 = self._stage(block, 4 * width * expansion, 8 * width, depths[3], strides[2])
        self.feature_dim = 8 * width * expansion
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    @staticmethod
    def _stage(
        block: type[BasicBlock] | type[Bottleneck], inputs: int, planes: int, depth: int, stride: int
    ) -> nn.Sequential:
        rest = [block(planes * block.expansion, planes, 1) for _ in range(depth - 1)]
        return nn.Sequential(block(inputs, planes, stride), *rest)

    def block_names(self) -> list[tuple[str, ...]]:
        """The residual blocks, for `fastssl.models.depth.layers`."""
        stages = {name: getattr(self, name) for name in ("layer1", "layer2", "layer3", "layer4")}
        return [(f"{name}.{i}",) for name, stage in stages.items() for i in range(len(stage))]

    def stages(self, x: Tensor) -> Iterator[Tensor]:
        """The map at the end of each of the four stages, the last of them that of :meth:`maps`."""
        _check.images("resnet", x, self.channels)
        x = self.maxpool(F.relu(self.bn1(self.conv1(x))))
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = stage(x)
            yield x

    def maps(self, x: Tensor) -> Tensor:
        """x: (N, channels, H, W) floating-point images, normalised. Returns the last map, (N, feature_dim, h, w).

        Each of h and w is a 32nd of the image's with the stem "imagenet", an 8th with "cifar", rounded up; or what
        ``max_stride`` allows.

        Raises:
            ValueError, TypeError: naming the shape or dtype received, if it is another.
        """
        return deque(self.stages(x), maxlen=1)[0]

    def forward(self, x: Tensor) -> Tensor:
        """x: (N, channels, H, W), as for :meth:`maps`. Returns (N, feature_dim), the map averaged over positions."""
        return self.maps(x).mean(dim=(2, 3))


resnet18 = partial(ResNet, BasicBlock, (2, 2, 2, 2))
resnet34 = partial(ResNet, BasicBlock, (3, 4, 6, 3))
resnet50 = partial(ResNet, Bottleneck, (3, 4, 6, 3))

ENCODERS = {"resnet18": resnet18, "resnet34": resnet34, "resnet50": resnet50}
