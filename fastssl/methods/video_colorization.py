"""Video colorization: copy the colours of a frame from the frames before it (Vondrick et al., arXiv:1806.09594).

Recipe:
    fastssl pretrain video_colorization --data videos
    Time and score: not yet measured.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastssl.data import plans
from fastssl.data.kmeans import kmeans
from fastssl.errors import UserError
from fastssl.methods.base import Method
from fastssl.models import feature_dim
from fastssl.ops import encode_ab, lab_to_rgb, rgb_to_lab
from fastssl.ops.encode_ab import NEAREST

# Mean distance of the colours from their mean, in CIE units, below which a video is grey: codecs leave about a half.
GREY = 1.0


@dataclass(frozen=True)
class VideoColorizationConfig:
    """Hyper-parameters of video colorization.

    Attributes:
        colors: clusters of the ab plane, among which the colour of a position is told; the paper's 16. Found by k-means
            in the first batch, and part of the state.
        dim: length of an embedding; the paper's 64.
        temperature: divides the cosine of two embeddings. The paper has inner products in its place, whose scale is
            learnt with them.
    """

    colors: int = 16
    dim: int = 64
    temperature: float = 0.07

    def __post_init__(self) -> None:
        if self.colors < NEAREST:
            raise UserError(f"the colors of video_colorization must be {NEAREST} or more; got {self.colors}")
        if self.dim < 1:
            raise UserError(f"the dim of video_colorization must be 1 or more; got {self.dim}")
        if not (math.isfinite(self.temperature) and self.temperature > 0):
            raise UserError(
                f"the temperature of video_colorization must be a finite number above 0; got {self.temperature}"
            )


class VideoColorization(Method):
    """Tracking by colorizing (arXiv:1806.09594, section 3): where in the earlier frames does this colour come from?

    The last frame of a clip is the target, those before it are the references. All are seen without colours, by one
    encoder. A softmax over the similarities of a target position to all reference positions (equation 1) copies their
    colours (equation 2), and the cross-entropy with the target's own colours (equation 3) is the loss. To solve it the
    attention has to point at where a thing was: it tracks.

    A target colour that no reference has cannot be copied: such positions count as wrong, and not in the loss.
    """

    Config = VideoColorizationConfig
    modality = "video"
    recipe = MappingProxyType(
        {
            "max_stride": 8,
            "image_size": 128,
            "batch_size": 8,
            "optim": {"name": "adamw", "lr": 1e-3, "weight_decay": 1e-4},
        }
    )
    colors: Tensor
    mean: Tensor
    std: Tensor

    def __init__(self, encoder: nn.Module, config: VideoColorizationConfig) -> None:
        if not hasattr(encoder, "maps"):
            raise UserError(
                f"video_colorization compares positions, and a {type(encoder).__name__} gives no map of them: take a "
                "resnet, an alexnet or a vit"
            )
        super().__init__(encoder, config)
        self.head = nn.Conv2d(feature_dim(encoder), config.dim, 1)
        self.register_buffer("colors", torch.zeros(config.colors, 2))  # until the first batch was seen
        for name, values in (("mean", plans.IMAGENET_MEAN), ("std", plans.IMAGENET_STD)):
            self.register_buffer(name, torch.tensor(values).view(3, 1, 1), persistent=False)

    @classmethod
    def view_plan(cls, size: int) -> plans.ViewPlan:
        """One view of each frame, in all its colours and in [0, 1]: a crop and a flip, the same in a whole clip."""
        return replace(plans.colorization(size), crop_scale=(0.3, 1.0))

    def forward(self, views: list[Tensor]) -> Tensor:
        """views: one (N, T, 3, H, W) batch of clips, T >= 2, RGB in [0, 1]. Returns the scalar loss."""
        (clips,) = views
        embeddings, ab = self._seen(clips)
        classes = encode_ab(ab.flatten(0, 1), self._palette(ab))[0][:, 0].unflatten(0, clips.shape[:2])
        references = F.one_hot(classes[:, :-1], self.config.colors).float()
        copied = self.copy(embeddings, references.movedim(-1, 2)).flatten(2)
        target = classes[:, -1].flatten(1)
        there = references.flatten(1, 3).amax(1).gather(1, target) > 0
        least = torch.finfo(copied.dtype).tiny
        nll = F.nll_loss(copied.clamp_min(least).log(), target, reduction="none")
        self.note(
            pretext_accuracy=(copied.argmax(1) == target).float().mean(),
            chance=F.one_hot(target, self.config.colors).flatten(0, 1).float().mean(0).max(),
            unmoved_accuracy=(classes[:, -2].flatten(1) == target).float().mean(),
        )
        return (nll * there).sum() / there.sum().clamp(min=1)

    def embed(self, frames: Tensor) -> Tensor:
        """The embeddings by whose similarity colours are copied, and labels can be: of unit length.

        Args:
            frames: (N, 3, H, W) floating-point, RGB in [0, 1]; their colours are not looked at.
        Returns:
            (N, dim, h, w) float32, on the grid of the encoder's last map.
        """
        return self._embed(rgb_to_lab(frames)[:, :1])

    def copy(self, embeddings: Tensor, values: Tensor) -> Tensor:
        """What the target copies from its references (equations 1 and 2).

        Args:
            embeddings: (N, T, D, h, w) float32, the target last.
            values: (N, T - 1, C, h, w) float32, of the references.
        Returns:
            (N, C, h, w) float32.
        """
        query, keys = embeddings[:, -1:], embeddings[:, :-1]
        # torch computes attention without storing it where all have one length; autocast would round it
        with torch.autocast(query.device.type, enabled=False):
            copied = F.scaled_dot_product_attention(
                *(_rows(x) for x in (query, keys, values)), scale=1 / self.config.temperature
            )
        return copied.squeeze(1).transpose(1, 2).unflatten(2, embeddings.shape[3:])

    @torch.no_grad()
    def pictures(self, views: list[Tensor]) -> dict[str, Tensor]:
        """``reference``, the frame before the target; ``seen`` of the target; ``copied`` and ``true`` colours."""
        (clips,) = views
        embeddings, ab = self._seen(clips)
        target = rgb_to_lab(clips[:, -1])
        copied = F.interpolate(self.copy(embeddings, ab[:, :-1]), size=clips.shape[3:], mode="bilinear")
        grey, colored = (torch.cat([target[:, :1], colors], 1) for colors in (torch.zeros_like(copied), copied))
        return {
            "reference": clips[:, -2],
            "seen": lab_to_rgb(grey).clamp(0, 1),
            "copied": lab_to_rgb(colored).clamp(0, 1),
            "true": clips[:, -1],
        }

    def _seen(self, clips: Tensor) -> tuple[Tensor, Tensor]:
        """Embeddings (N, T, D, h, w) of clips (N, T, 3, H, W), and their ab (N, T, 2, h, w) on the same grid."""
        lab = rgb_to_lab(clips).flatten(0, 1)
        embeddings = self._embed(lab[:, :1])
        ab = F.adaptive_avg_pool2d(lab[:, 1:], embeddings.shape[2:])
        return embeddings.unflatten(0, clips.shape[:2]), ab.unflatten(0, clips.shape[:2])

    def _embed(self, lightness: Tensor) -> Tensor:
        """(N, D, h, w) of (N, 1, H, W) in [0, 100], shown to the encoder as a grey image is."""
        grey = (lightness / 100 - self.mean) / self.std
        maps = self.head(cast(Any, self.encoder).maps(grey))
        return F.normalize(maps.float(), dim=1)

    def _palette(self, ab: Tensor) -> Tensor:
        """(colors, 2): those of the state; before there are any, those of ``ab``, which training then keeps."""
        if bool(self.colors.any()):
            return self.colors
        points = ab.movedim(2, -1).flatten(0, 3)
        found = kmeans(points, self.config.colors)
        if self.training:
            spread = float((points - points.mean(0)).norm(dim=1).mean())
            if spread < GREY:
                raise UserError(
                    f"the videos have no colours to copy: on average they differ by {spread:.2g} CIE units, and by "
                    f"{GREY:g} or more must they: give videos in colour"
                )
            self.colors.copy_(found)
        return found


def _rows(maps: Tensor) -> Tensor:
    """(N, T, C, h, w) to (N, 1, T h w, C): a row a position, and one head."""
    return maps.transpose(1, 2).flatten(2).transpose(1, 2)[:, None]
