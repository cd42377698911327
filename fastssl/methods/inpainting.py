"""Inpainting: what is in the part of an image that is hidden? (context encoders; Pathak et al., arXiv:1604.07379).

Recipe:
    fastssl pretrain inpainting --data clipart --stem cifar --width 16
    fastssl pretrain inpainting --config benchmarks/recipes/cifar10/inpainting.yaml --data cifar10
        CIFAR-10 on two CPU cores: 6.1 minutes, kNN 38.8 ± 1.1 % (untrained 28.0 ± 0.6 %); docs/scores.md.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastssl.data import plans
from fastssl.data.lab import from_rgb, to_rgb
from fastssl.errors import UserError, unknown
from fastssl.methods.base import Method
from fastssl.models import feature_dim, map_side, maps
from fastssl.models.adversary import Adversary
from fastssl.models.decoders import ChannelwiseLinear, ConvDecoder, Discriminator
from fastssl.ops import block_masking

Hole = Literal["center", "block", "region"]

LEAST_SIZE = 16
HIDDEN = 1 / 4  # of the image: holes cover up to that in the paper (section 4.1)
OVERLAP_WEIGHT = 10.0  # of what is seen just around the hole (section 4)
LARGEST_SIDE = 8  # of the map that all its places exchange: weights grow with its fourth power; the paper has 6
_CELLS = 16  # of the grid that blocks lie on, along a side
_COARSE = 8  # of the noise whose lowest quarter is a region, as in the authors' code: 0.06 cells a pixel, of 128


@dataclass(frozen=True)
class InpaintingConfig:
    """Hyper-parameters of context encoders.

    Attributes:
        hole: what is hidden (section 4.1): "region", patches of any shape, by which the paper trains its features, for
            their place and outline cannot be learnt; several "block"s; or always the "center", a square.
        adversarial_weight: of the discriminator's opinion in the loss, the rest being the squared error's (section
            3.2): with 0, the answer is the mean of all that could be there, which is blurred.
        discriminator_lr: of the discriminator's own optimizer, a tenth of the other's in the paper.
    """

    hole: Hole = "region"
    adversarial_weight: float = 0.001
    discriminator_lr: float = 2e-4

    def __post_init__(self) -> None:
        if self.hole not in get_args(Hole):
            raise unknown("hole of inpainting", self.hole, get_args(Hole))
        if not 0 <= self.adversarial_weight < 1:
            raise UserError(
                f"the adversarial_weight of inpainting must lie in [0, 1), the rest is the squared error's; "
                f"got {self.adversarial_weight}"
            )
        if not 0 < self.discriminator_lr < math.inf:
            raise UserError(
                f"the discriminator_lr of inpainting must be a finite number above 0; got {self.discriminator_lr}"
            )


class Inpainting(Method):
    """Context encoders (arXiv:1604.07379): paints what is hidden, so that it is near the truth and looks real.

    Encoder, a layer in which all places of each channel meet, and a decoder. The discriminator is trained in turns with
    them, a step each, by an optimizer of its own. It sees what was painted for the center, and images with their other
    holes filled.
    """

    Config = InpaintingConfig
    # Adam as in the authors' code, which has ten times the discriminator's rate
    recipe = MappingProxyType(
        {"optim": {"name": "adamw", "lr": 2e-3, "momentum": 0.5, "weight_decay": 0.0, "warmup_epochs": 1}}
    )

    def __init__(self, encoder: nn.Module, config: InpaintingConfig, size: int = 64) -> None:
        _check_size(size)
        super().__init__(encoder, config)
        dim, side = feature_dim(encoder), min(map_side(encoder, size), LARGEST_SIDE)
        self.size, self.band = size, max(1, round(size / 32))
        self.painted = _middle(size, size // 2) if config.hole == "center" else slice(0, size)
        painted = self.painted.stop - self.painted.start
        self.exchange = ChannelwiseLinear(dim, side)
        doublings = max(1, math.ceil(math.log2(painted / side)))
        self.decoder = ConvDecoder(dim, 3, doublings=doublings, width=max(32, dim // 2))
        self.adversary: Adversary | None = None
        if config.adversarial_weight > 0:
            judge = Discriminator(painted, width=min(64, max(16, dim // 8)))
            self.adversary = Adversary(judge, config.discriminator_lr)
        self._judged: tuple[Tensor, Tensor] | None = None

    @classmethod
    def build(cls, encoder: nn.Module, config: InpaintingConfig, size: int) -> Inpainting:
        """Decoder and discriminator are for images of one size."""
        return cls(encoder, config, size)

    @classmethod
    def view_plan(cls, size: int) -> plans.ViewPlan:
        """One view by crop, of half the image and more, and flip."""
        _check_size(size)
        return plans.ViewPlan(size=size, crop_scale=(0.5, 1.0), flip=0.5)

    def forward(self, views: list[Tensor]) -> Tensor:
        """views: one (N, 3, H, H) batch. Returns the scalar loss (equation 3); draws holes from torch's generators."""
        (images,) = views
        truth = 2 * to_rgb(images) - 1
        hidden = self.holes(len(images), images.device)
        painted = self._paint(images, hidden)
        around = F.max_pool2d(hidden.float(), 2 * self.band + 1, 1, self.band).bool()
        weight = torch.where(hidden, 1.0, OVERLAP_WEIGHT) * around
        error = (painted - truth).square()
        squared = (weight * error).sum() / (3 * around.sum())
        self._judged = None
        noted = self._notes(images, truth, painted, hidden)
        if self.adversary is None:
            self.note(**noted)
            return squared
        real, fake = (x[..., self.painted, self.painted] for x in (truth, torch.where(around, painted, truth)))
        unlike, fooled = self.adversary(fake)
        self.note(**noted, fooled=fooled)
        if self.training:
            self._judged = real, fake.detach()
        share: float = self.config.adversarial_weight
        loss: Tensor = (1 - share) * squared + share * unlike
        return loss

    def after_step(self, progress: float) -> None:
        """The discriminator's turn, on what was painted before this step."""
        if self.adversary is not None and self._judged is not None:
            self.adversary.step(*self._judged)
        self._judged = None

    def holes(self, count: int, device: torch.device) -> Tensor:
        """(count, 1, H, H) bool, True where hidden."""
        size = self.size
        if self.config.hole == "center":
            return self._center(device).expand(count, -1, -1, -1)
        if self.config.hole == "block":
            cells = block_masking(
                count, _CELLS, int(HIDDEN * _CELLS**2), min_block=4, max_block=_CELLS * 2, device=device
            )
            return F.interpolate(cells[:, None].float(), size, mode="nearest").bool()
        noise = F.interpolate(torch.rand(count, 1, _COARSE, _COARSE, device=device), size, mode="bicubic")
        level = noise.flatten(1).sort(dim=1).values[:, int(HIDDEN * size**2) - 1]
        return noise <= level.view(-1, 1, 1, 1)

    def _center(self, device: torch.device) -> Tensor:
        """(1, 1, H, H) bool: half as wide as the image, less a band that is seen and painted over."""
        hidden = torch.zeros(1, 1, self.size, self.size, dtype=torch.bool, device=device)
        inner = _middle(self.size, self.size // 2 - 2 * self.band)
        hidden[..., inner, inner] = True
        return hidden

    def _paint(self, images: Tensor, hidden: Tensor) -> Tensor:
        """(N, 3, H, H) sRGB in [-1, 1], 0 where none is asked for, of views whose ``hidden`` part is not seen."""
        height, width = images.shape[2:]
        if (height, width) != (self.size, self.size):
            raise ValueError(
                f"inpainting was built for images of {self.size} x {self.size} pixels; got {height} x {width}"
            )
        seen = maps(self.encoder, images.masked_fill(hidden, 0.0))
        met = self.exchange(F.adaptive_avg_pool2d(seen, self.exchange.side))
        start, stop = self.painted.start, self.painted.stop
        painted = self.decoder(met, (stop - start, stop - start)).float().tanh()
        return F.pad(painted, (start, self.size - stop, start, self.size - stop))

    @torch.no_grad()
    def _notes(self, images: Tensor, truth: Tensor, painted: Tensor, hidden: Tensor) -> dict[str, Tensor]:
        """Error of the hidden pixels, of values in [0, 1]; that of the mean of what is seen of each image; and the
        sharpness of what was painted, 1 for the truth's."""
        seen = truth.masked_fill(hidden, 0.0).sum(dim=(2, 3), keepdim=True) / (~hidden).sum(dim=(2, 3), keepdim=True)
        pixels = 3 * hidden.sum()
        error, constant = (
            ((answer - truth).square() * hidden).sum().div(pixels).sqrt() / 2 for answer in (painted, seen)
        )
        filled = torch.where(hidden, painted, truth)
        sharp = gradient_magnitude(filled, hidden) / gradient_magnitude(truth, hidden).clamp(min=1e-12)
        return {"pretext_error": error, "constant_error": constant, "sharpness": sharp}

    @torch.no_grad()
    def fill(self, images: Tensor, hidden: Tensor) -> Tensor:
        """Views with what is hidden painted, and all else as it was.

        Args:
            images: (N, 3, H, H) views; what they have at hidden places is not looked at.
            hidden: (N, 1, H, H) bool, for a run with holes in the center no other places than those.
        Raises:
            ValueError: for images of another size than it was built for.
        """
        return torch.where(hidden, from_rgb((self._paint(images, hidden) + 1) / 2), images)

    @torch.no_grad()
    def fill_photo(self, photo: Tensor, hidden: Tensor | None = None) -> Tensor:
        """A photo of any size with a hole filled, and all else as it was.

        What is seen of it is a square around the hole, twice as wide, where the photo has that much.

        Args:
            photo: (1, 3, H, W) sRGB in [0, 1].
            hidden: (1, 1, H, W) bool, somewhere True; by default the hole in the center of the photo's largest square.
        Returns:
            (1, 3, H, W) sRGB in [0, 1].
        """
        if hidden is None:
            side = min(photo.shape[2:])
            window = tuple(_middle(length, side) for length in photo.shape[2:])
            hole = self._center(photo.device)
            within = F.interpolate(hole.float(), side, mode="nearest").bool()
        else:
            window = _around(hidden, self.size)
            within = hidden[..., window[0], window[1]]
            hole = F.adaptive_max_pool2d(within.float(), self.size).bool()  # whole pixels, so that none shows the hole
        part = photo[..., window[0], window[1]]
        shown = F.interpolate(from_rgb(part).masked_fill(within, 0.0), hole.shape[2:], mode="bilinear", antialias=True)
        painted = F.interpolate((self._paint(shown, hole) + 1) / 2, part.shape[2:], mode="bilinear")
        filled = photo.clone()
        filled[..., window[0], window[1]] = torch.where(within, painted, part)
        return filled

    def pictures(self, views: list[Tensor]) -> dict[str, Tensor]:
        """``original``; ``masked``: what the encoder sees; ``filled``."""
        (images,) = views
        hidden = self.holes(len(images), images.device)
        return {
            "original": images,
            "masked": images.masked_fill(hidden, 0.0),
            "filled": self.fill(images, hidden),
        }


def gradient_magnitude(images: Tensor, where: Tensor) -> Tensor:
    """How sharp (N, C, H, W) images are: the mean length of the gradient of a channel, by differences, a scalar.

    Args:
        where: (N, 1, H, W) bool, the pixels that count; those of the last row and column never do.
    """
    right = images[..., :-1, 1:] - images[..., :-1, :-1]
    down = images[..., 1:, :-1] - images[..., :-1, :-1]
    length = (right.square() + down.square()).sqrt().mean(dim=1, keepdim=True)
    counts = where[..., :-1, :-1]
    return (length * counts).sum() / counts.sum()


def _middle(size: int, side: int) -> slice:
    start = (size - side) // 2
    return slice(start, start + side)


def _around(hidden: Tensor, least: int) -> tuple[slice, slice]:
    """Rows and columns of (1, 1, H, W): a square around what is True, twice as wide and of ``least`` pixels or more."""
    spans = [hidden[0, 0].any(dim=1 - axis).nonzero()[[0, -1], 0].tolist() for axis in (0, 1)]
    side = max(least, *(2 * (last - first + 1) for first, last in spans))
    window = []
    for (first, last), length in zip(spans, hidden.shape[2:], strict=True):
        own = min(side, length)
        start = min(max(0, (first + last + 1 - own) // 2), length - own)
        window.append(slice(start, start + own))
    return window[0], window[1]


def _check_size(size: int) -> None:
    if size < LEAST_SIZE:
        raise UserError(f"inpainting needs images of at least {LEAST_SIZE} x {LEAST_SIZE} pixels; got {size} x {size}")
