"""Split-brain: half a network guesses colour of lightness, half lightness of colour (Zhang et al., arXiv:1611.09842).

Recipe:
    fastssl pretrain split_brain --data clipart --stem cifar --width 32
    fastssl pretrain split_brain --config benchmarks/recipes/cifar10/split_brain.yaml --data cifar10
        CIFAR-10 on two CPU cores: 6.2 minutes, kNN 46.8 % (untrained 34.8 %); docs/scores.md.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastssl.data import plans
from fastssl.data.lab import from_lab, grey, has_colour, to_lab
from fastssl.errors import UserError, unknown
from fastssl.losses import soft_cross_entropy
from fastssl.methods.base import Method
from fastssl.models import feature_dim, map_stride
from fastssl.models.decoders import PixelHead
from fastssl.models.split import SplitEncoder
from fastssl.ops import decode_ab, encode_ab, gamut_bins

Loss = Literal["classification", "regression"]

SHADES = 100  # bins of L, one wide
TEMPERATURE = 0.38  # of the annealed mean that makes a picture of a distribution: colorization's
FINENESS = 16  # pixels of the image, along a side, for each answer: 180 to 12 in the paper
_SCALE = 50.0  # of L, a and b in the squared error


@dataclass(frozen=True)
class SplitBrainConfig:
    """Hyper-parameters of split-brain autoencoders.

    Attributes:
        loss: "classification" into 313 bins of colour and 100 of lightness, by cross-entropy, or "regression" of L, a
            and b by their squared error (section 3.1). The paper's better features are those of classification.
    """

    loss: Loss = "classification"

    def __post_init__(self) -> None:
        if self.loss not in get_args(Loss):
            raise unknown("loss of split_brain", self.loss, get_args(Loss))


class SplitBrain(Method):
    """Split-brain autoencoders (arXiv:1611.09842, section 3.2): two halves of a network, each guessing what the
    other sees.

    Neither half can copy what it is asked for, as an autoencoder would, and the features of both together tell of all
    channels.
    """

    Config = SplitBrainConfig
    recipe = MappingProxyType({"encoder": "alexnet_split"})
    encoder: SplitEncoder
    colors: Tensor
    shades: Tensor

    def __init__(self, encoder: nn.Module, config: SplitBrainConfig) -> None:
        if not isinstance(encoder, SplitEncoder):
            raise UserError(
                f"split_brain trains two halves of an encoder, which a {type(encoder).__name__} does not have: "
                "give it alexnet_split or resnet18_split"
            )
        super().__init__(encoder, config)
        colors, lightness = gamut_bins(), torch.arange(SHADES) + 0.5
        classes = config.loss == "classification"
        self.to_color = self._head(encoder.lightness, len(colors) if classes else 2)
        self.to_lightness = self._head(encoder.color, SHADES if classes else 1)
        self.register_buffer("colors", colors, persistent=False)
        self.register_buffer("shades", torch.stack([lightness, torch.zeros(SHADES)], dim=1), persistent=False)

    @staticmethod
    def _head(half: nn.Module, outputs: int) -> PixelHead:
        dim = feature_dim(half)
        doublings = max(0, round(math.log2(map_stride(half) / FINENESS)))
        return PixelHead(dim, outputs, doublings=doublings, width=max(64, dim))

    @classmethod
    def view_plan(cls, size: int) -> plans.ViewPlan:
        """One view in all its colours: colorization's."""
        return plans.colorization(size)

    def prepare(self, batches: Iterable[list[Tensor]]) -> None:
        """Looks for an image with colours.

        Raises:
            UserError: if all are grey.
        """
        if not any(bool(has_colour(to_lab(views)).any()) for (views,) in batches):
            raise UserError("split_brain learns from colours, and the images to train on are all grey")

    def forward(self, views: list[Tensor]) -> Tensor:
        """views: one (N, 3, H, H) batch. Returns the scalar loss, the sum of both halves'."""
        (images,) = views
        lab = to_lab(images)
        ab, lightness = self._answers(lab)
        truth = F.adaptive_avg_pool2d(lab, (ab.shape[2], ab.shape[3]))
        return self._classified(ab, lightness, truth) if self._classifies else self._regressed(ab, lightness, truth)

    @property
    def _classifies(self) -> bool:
        return bool(self.config.loss == "classification")

    def _answers(self, lab: Tensor) -> tuple[Tensor, Tensor]:
        """What the halves say of colour and of lightness, each (N, outputs, h, w)."""
        of_lightness, of_color = self.encoder.halves(lab)
        return self.to_color(of_lightness), self.to_lightness(of_color)

    def _classified(self, ab: Tensor, lightness: Tensor, truth: Tensor) -> Tensor:
        """Cross-entropies with soft bins of colour and hard ones of lightness; notes how often the likeliest is right.

        Beside that what one answer for all would come to.
        """
        ids, shares = encode_ab(truth[:, 1:], self.colors)
        shade = truth[:, 0].long().clamp(0, SHADES - 1)
        pairs = ((ab, ids[:, 0]), (lightness, shade))
        right = [(logits.argmax(dim=1) == nearest).float().mean() for logits, nearest in pairs]
        shades = _shares(shade, SHADES)
        commonest = [_shares(ids[:, 0], len(self.colors)).max(), shades.max()]
        self.note(
            pretext_accuracy=(right[0] + right[1]) / 2,
            chance=(commonest[0] + commonest[1]) / 2,
            color_accuracy=right[0],
            lightness_accuracy=right[1],
            constant_loss=_entropy(_shares(ids, len(self.colors), shares)) + _entropy(shades),
        )
        return soft_cross_entropy(ab, ids, shares).mean() + F.cross_entropy(lightness.float(), shade)

    def _regressed(self, ab: Tensor, lightness: Tensor, truth: Tensor) -> Tensor:
        """Squared errors; notes their roots in CIE units, beside those of the batch's mean as the only answer."""
        truth = truth / _SCALE
        of_color, of_lightness = F.mse_loss(ab.float(), truth[:, 1:]), F.mse_loss(lightness.float(), truth[:, :1])
        spread = truth.var(dim=(0, 2, 3), correction=0)
        self.note(
            pretext_error=_SCALE * ((2 * of_color + of_lightness) / 3).sqrt(),
            constant_error=_SCALE * spread.mean().sqrt(),
            color_error=_SCALE * of_color.sqrt(),
            lightness_error=_SCALE * of_lightness.sqrt(),
        )
        return of_color + of_lightness

    @torch.no_grad()
    def predict(self, lab: Tensor) -> Tensor:
        """(N, 3, H, W) CIELAB as the halves guess it: lightness by the colours of ``lab``, colours by its lightness."""
        ab, lightness = self._answers(lab)
        if self._classifies:
            ab = decode_ab(ab, self.colors, temperature=TEMPERATURE)
            lightness = decode_ab(lightness, self.shades, temperature=TEMPERATURE)[:, :1]
        else:
            ab, lightness = ab.float() * _SCALE, lightness.float() * _SCALE
        return F.interpolate(torch.cat([lightness, ab], dim=1).to(lab.dtype), lab.shape[2:], mode="bilinear")

    def pictures(self, views: list[Tensor]) -> dict[str, Tensor]:
        """Both directions, what is guessed beside what it is guessed of; ``both`` joins the two guesses alone."""
        (images,) = views
        lab = to_lab(images)
        guessed = self.predict(lab)
        plain = torch.full_like(lab[:, :1], 50.0)
        return {
            "lightness": grey(lab[:, :1]),
            "with guessed colours": from_lab(torch.cat([lab[:, :1], guessed[:, 1:]], dim=1)),
            "colours": from_lab(torch.cat([plain, lab[:, 1:]], dim=1)),
            "with guessed lightness": from_lab(torch.cat([guessed[:, :1], lab[:, 1:]], dim=1)),
            "both guesses": from_lab(guessed),
            "original": images,
        }


def _shares(ids: Tensor, classes: int, weights: Tensor | None = None) -> Tensor:
    """What share of the ``weights``, or of int64 ``ids`` in [0, classes), each class has; no host waits for a GPU."""
    counted = torch.ones(ids.numel(), device=ids.device) if weights is None else weights.flatten()
    total = torch.zeros(classes, device=ids.device, dtype=counted.dtype).index_add(0, ids.flatten(), counted)
    return total / total.sum()


def _entropy(shares: Tensor) -> Tensor:
    """In nats: the least cross-entropy of one answer for all."""
    entropy: Tensor = torch.special.entr(shares).sum()
    return entropy
