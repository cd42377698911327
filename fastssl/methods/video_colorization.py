"""Video colorization: copy the colours of a frame from the frames before it (Vondrick et al., arXiv:1806.09594).

Recipe:
    fastssl pretrain video_colorization --data videos --width 16
    python -m benchmarks.scores.davis --data DAVIS    (learns from half of it, tracks through the other; minutes)
    Time and score: not yet measured.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from types import MappingProxyType

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastssl.data import plans
from fastssl.data.kmeans import kmeans
from fastssl.data.lab import from_lab, from_rgb, grey, has_colour, to_lab, without_colour
from fastssl.errors import UserError
from fastssl.methods.base import Method
from fastssl.models import feature_dim, maps
from fastssl.ops import encode_ab
from fastssl.ops.encode_ab import NEAREST

_BATCHES = 64  # of clips, at most, of which the colours are found


@dataclass(frozen=True)
class VideoColorizationConfig:
    """Hyper-parameters of video colorization.

    Attributes:
        colors: clusters of the ab plane, by k-means, among which the colour of a position is told; the paper's 16.
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
    sees = "grey"
    recipe = MappingProxyType(
        {
            "max_stride": 8,
            "image_size": 128,
            "batch_size": 8,
            "media": {"frames": 4, "stride": 4, "every": 1},
            "optim": {"name": "adamw", "lr": 1e-3, "weight_decay": 1e-4},
        }
    )
    colors: Tensor

    def __init__(self, encoder: nn.Module, config: VideoColorizationConfig) -> None:
        super().__init__(encoder, config)
        self.head = nn.Conv2d(feature_dim(encoder), config.dim, 1)
        self.register_buffer("colors", torch.zeros(config.colors, 2))  # until the videos were looked at
        self._known = False  # as far as was looked
        encoder.register_forward_pre_hook(lambda _, inputs: (without_colour(inputs[0]),))

    @classmethod
    def view_plan(cls, size: int) -> plans.ViewPlan:
        """One view of each frame, in all its colours: a crop and a flip, the same in a whole clip."""
        return plans.ViewPlan(size=size, crop_scale=(0.3, 1.0), flip=0.5)

    def prepare(self, batches: Iterable[list[Tensor]]) -> None:
        """Finds the colours, by k-means over those of all clips, or of as many as are enough.

        Raises:
            UserError: if all videos are grey.
        """
        found, clips = [], 0
        for (views,) in islice(batches, _BATCHES):
            lab = to_lab(views.flatten(0, 1))
            colored = lab[has_colour(lab), 1:]
            clips += len(views)
            if len(colored):
                found.append(F.adaptive_avg_pool2d(colored, 32).movedim(1, -1).flatten(0, 2).cpu())
        if not found:
            raise UserError(
                f"video_colorization learns from colours, and the {clips} clips of videos that it saw are all grey"
            )
        self.colors.copy_(kmeans(torch.cat(found), self.config.colors))
        self._known = True

    def forward(self, views: list[Tensor]) -> Tensor:
        """views: one (N, T, 3, H, W) batch of clips. Returns the scalar loss.

        Raises:
            ValueError: naming the shape received, if these are clips of fewer than two frames.
        """
        (clips,) = views
        if clips.shape[1] < 2:
            raise ValueError(f"views must be (N, T, 3, H, W) with T of at least 2; got {tuple(clips.shape)}")
        embeddings, ab = self._seen(clips)
        classes = self._nearest(ab)
        references = F.one_hot(classes[:, :-1], self.config.colors).float()
        copied = self.copy(embeddings, references.movedim(-1, 2)).flatten(2)
        target = classes[:, -1].flatten(1)
        self.note(
            pretext_accuracy=(copied.argmax(1) == target).float().mean(),
            chance=F.one_hot(target, self.config.colors).float().mean((0, 1)).max(),
            unmoved_accuracy=(classes[:, -2].flatten(1) == target).float().mean(),
        )
        there = references.flatten(1, 3).amax(1).gather(1, target)
        logs = copied.clamp_min(torch.finfo(copied.dtype).tiny).log()
        return (F.nll_loss(logs, target, reduction="none") * there).sum() / there.sum().clamp(min=1)

    def embed(self, frames: Tensor) -> Tensor:
        """The embeddings by whose similarity colours are copied, and labels can be: of unit length.

        Args:
            frames: (N, 3, H, W) floating-point, RGB in [0, 1]; their colours are not looked at.
        Returns:
            (N, dim, h, w) float32, on the grid of the encoder's last map.
        """
        return self._embed(to_lab(from_rgb(frames))[:, :1])

    def copy(self, embeddings: Tensor, values: Tensor) -> Tensor:
        """What the target copies from its references (equations 1 and 2).

        Args:
            embeddings: (N, T, D, h, w) float32, the target last.
            values: (N, T - 1, C, h, w) float32, of the references.
        Returns:
            (N, C, h, w) float32.
        """
        query, keys = embeddings[:, -1:], embeddings[:, :-1]
        with torch.autocast(query.device.type, enabled=False):  # which would round the similarities
            copied = F.scaled_dot_product_attention(
                _rows(query), _rows(keys), _rows(values), scale=1 / self.config.temperature
            )
        return copied.squeeze(1).mT.reshape(len(values), values.shape[2], *values.shape[3:])

    @torch.no_grad()
    def pictures(self, views: list[Tensor]) -> dict[str, Tensor]:
        """``reference``, the frame before the target, what is ``seen`` of that, its ``copied`` and ``true`` colours."""
        (clips,) = views
        embeddings, ab = self._seen(clips)
        lightness = to_lab(clips[:, -1])[:, :1]
        copied = F.interpolate(self.copy(embeddings, ab[:, :-1]), size=clips.shape[3:], mode="bilinear")
        return {
            "reference": clips[:, -2],
            "seen": grey(lightness),
            "copied": from_lab(torch.cat([lightness, copied], 1)),
            "true": clips[:, -1],
        }

    def _seen(self, clips: Tensor) -> tuple[Tensor, Tensor]:
        """Embeddings (N, T, D, h, w) of clips (N, T, 3, H, W), and their ab (N, T, 2, h, w) on the same grid."""
        lab = to_lab(clips.flatten(0, 1))
        embeddings = self._embed(lab[:, :1])
        ab = F.adaptive_avg_pool2d(lab[:, 1:], (embeddings.shape[2], embeddings.shape[3]))
        return embeddings.view(*clips.shape[:2], *embeddings.shape[1:]), ab.view(*clips.shape[:2], *ab.shape[1:])

    def _embed(self, lightness: Tensor) -> Tensor:
        """(N, D, h, w) of (N, 1, H, W) in [0, 100]."""
        return F.normalize(self.head(maps(self.encoder, grey(lightness))).float(), dim=1)

    def _nearest(self, ab: Tensor) -> Tensor:
        """(N, T, h, w): which of the colours is nearest to each of (N, T, 2, h, w)."""
        flat = ab.flatten(0, 1)
        if not self._known:  # else no step waits for a GPU to tell
            self._known = bool(self.colors.any())
        of_batch = self.config.colors  # before any training
        colors = self.colors if self._known else kmeans(flat.movedim(1, -1).flatten(0, 2), of_batch)
        return encode_ab(flat, colors)[0][:, 0].reshape(*ab.shape[:2], *ab.shape[3:])


def _rows(x: Tensor) -> Tensor:
    """(N, T, C, h, w) to (N, 1, T h w, C): a row a position, and one head."""
    return x.transpose(1, 2).flatten(2).transpose(1, 2)[:, None]
