"""Colorization: which colours has a photo that is shown in grey? (Zhang, Isola and Efros, arXiv:1603.08511).

Recipe:
    fastssl pretrain colorization --data clipart --stem cifar --width 16
    fastssl pretrain colorization --config benchmarks/recipes/cifar10/colorization.yaml --data cifar10
        CIFAR-10 on two CPU cores: 5.8 minutes, kNN 42.7 ± 0.3 % (untrained 26.5 ± 3.0 %); docs/scores.md.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastssl.data import plans
from fastssl.data.lab import from_rgb, grey, has_colour, to_lab, without_colour
from fastssl.errors import UserError
from fastssl.losses import rebalancing_weights, soft_cross_entropy
from fastssl.methods.base import Method
from fastssl.models import feature_dim, map_stride, maps
from fastssl.models.decoders import PixelHead
from fastssl.ops import decode_ab, encode_ab, gamut_bins, lab_to_rgb

FINENESS = 4  # pixels of the image, along a side, for each colour that is predicted: 56 of 224 in the paper


@dataclass(frozen=True)
class ColorizationConfig:
    """Hyper-parameters of colorization.

    Attributes:
        rebalance: let each place count by the rarity of its colour among the training images (section 2.2). Without it
            the answers are greyish, for of most things grey is part.
        temperature: of the annealed mean that makes one colour of many (equation 5): 1 is their mean, which is greyish,
            towards 0 the likeliest, which is vivid and patchy. Of pictures alone, not of training.
    """

    rebalance: bool = True
    temperature: float = 0.38

    def __post_init__(self) -> None:
        if not 0 < self.temperature < math.inf:
            raise UserError(f"the temperature of colorization must be a finite number above 0; got {self.temperature}")


class Colorization(Method):
    """Colourful image colorization (arXiv:1603.08511): a distribution over 313 colours for each place of a grey image.

    The encoder never sees colour, neither in training nor, by its hook, wherever else it is used. Images that have none
    themselves do not count, as in the authors' code.
    """

    Config = ColorizationConfig
    sees = "grey"
    bins: Tensor
    prior: Tensor
    weights: Tensor

    def __init__(self, encoder: nn.Module, config: ColorizationConfig) -> None:
        super().__init__(encoder, config)
        dim = feature_dim(encoder)
        bins = gamut_bins()
        doublings = max(0, round(math.log2(map_stride(encoder) / FINENESS)))
        self.head = PixelHead(dim, len(bins), doublings=doublings, width=min(256, max(64, dim // 2)))
        self.register_buffer("bins", bins, persistent=False)
        self.register_buffer("prior", torch.full((len(bins),), 1 / len(bins)))
        self.register_buffer("weights", torch.ones(len(bins)))
        encoder.register_forward_pre_hook(_show_grey)

    @classmethod
    def view_plan(cls, size: int) -> plans.ViewPlan:
        """One view in all its colours."""
        return plans.colorization(size)

    def prepare(self, batches: Iterable[list[Tensor]]) -> None:
        """Counts the colours of all training images, which say what each counts: one pass, kept in the checkpoint.

        Raises:
            UserError: if all images are grey.
        """
        counts = torch.zeros(len(self.bins), dtype=torch.int64, device=self.bins.device)
        images = 0
        for (views,) in batches:
            lab = to_lab(views)
            ids, _ = encode_ab(_coarse(lab, views.shape[-1] // FINENESS), self.bins)
            counts += ids[has_colour(lab), 0].flatten().bincount(minlength=len(counts))
            images += len(views)
        if not bool(counts.any()):
            raise UserError(f"colorization learns from colours, and the {images} images to train on are all grey")
        self.prior.copy_(counts / counts.sum())
        if self.config.rebalance:
            self.weights.copy_(rebalancing_weights(self.prior, self.bins))

    def forward(self, views: list[Tensor]) -> Tensor:
        """views: one (N, 3, H, H) batch. Returns the scalar loss (equation 2), a mean over the places of all images."""
        (images,) = views
        lab = to_lab(images)
        logits = self._logits(lab[:, :1])
        ids, shares = encode_ab(_coarse(lab, logits.shape[2]), self.bins)
        nearest = ids[:, 0]
        colored = has_colour(lab)[:, None, None].float()
        counting = colored * self.weights[nearest]
        self._note_accuracy(logits, nearest, counting)
        places = colored.sum() * nearest[0].numel()
        return (counting * soft_cross_entropy(logits, ids, shares)).sum() / places.clamp(min=1)

    def _logits(self, lightness: Tensor) -> Tensor:
        """(N, 313, h, w) of (N, 1, H, W) in [0, 100]."""
        logits: Tensor = self.head(maps(self.encoder, grey(lightness)))
        return logits

    @torch.no_grad()
    def _note_accuracy(self, logits: Tensor, nearest: Tensor, counting: Tensor) -> None:
        """Of the likeliest colour, counted as the loss counts; chance is the best answer that is always the same."""
        right = logits.argmax(dim=1) == nearest
        constant = self.prior * self.weights
        self.note(
            pretext_accuracy=(counting * right).sum() / counting.sum().clamp(min=1e-12),
            chance=constant.max() / constant.sum(),
        )

    @torch.no_grad()
    def colorize(self, lightness: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """Photos in colour: those predicted, upsampled onto the lightness that they had.

        Args:
            lightness: (N, 1, H, W) CIE L in [0, 100], of any size that the encoder takes.
            size: height and width that the encoder is shown, by default all.
        Returns:
            (N, 3, H, W) sRGB in [0, 1].
        """
        shown = lightness if size is None else F.interpolate(lightness, size, mode="bilinear", antialias=True)
        ab = decode_ab(self._logits(shown), self.bins, temperature=self.config.temperature)
        ab = F.interpolate(ab.to(lightness.dtype), lightness.shape[2:], mode="bilinear")
        return lab_to_rgb(torch.cat([lightness, ab], dim=1))

    def pictures(self, views: list[Tensor]) -> dict[str, Tensor]:
        """``grey``: what the encoder sees; ``colorized``; ``original``."""
        (images,) = views
        lightness = to_lab(images)[:, :1]
        return {"grey": grey(lightness), "colorized": from_rgb(self.colorize(lightness)), "original": images}


def _coarse(lab: Tensor, side: int) -> Tensor:
    """(N, 2, side, side): the colours of (N, 3, H, H) images, averaged over as many places as are predicted."""
    return F.adaptive_avg_pool2d(lab[:, 1:], max(1, side))


def _show_grey(_encoder: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
    return (without_colour(*inputs),)
