"""MAE: rebuild the pixels of most patches from the few that are left (He et al., arXiv:2111.06377).

Recipe:
    fastssl pretrain mae --data clipart
    fastssl pretrain mae --config benchmarks/recipes/cifar10/mae.yaml --data cifar10
        CIFAR-10 on two CPU cores: 8.0 minutes, kNN 46.1 ± 0.5 % (untrained 30.7 ± 0.1 %); docs/scores.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor, nn

from fastssl.data import plans
from fastssl.errors import UserError, require_at_least
from fastssl.losses import MAELoss, patchify, unpatchify
from fastssl.methods.base import Method
from fastssl.models.vit import Block, VisionTransformer, init_weights, resized_positions, sincos_positions
from fastssl.ops import random_masking, restore_patches
from fastssl.ops.random_masking import kept_patches

_HEAD_WIDTH = 32  # channels of an attention head of the paper's decoder: 512 in 16 heads


@dataclass(frozen=True)
class MAEConfig:
    """Hyper-parameters of MAE.

    Attributes:
        mask_ratio: share of the patches that is hidden from the encoder; the paper's best is 0.75 (figure 5).
        decoder_width: channels of the decoder's tokens; null is half of the encoder's, as the paper's 512 of 1024.
        decoder_depth: blocks of the decoder; null is a third of the encoder's, as the paper's 8 of 24. One is enough
            for fine-tuning, more help linear probes (table 1a).
        normalize_pixels: rebuild each patch less its mean, over its deviation, which gives better features (table 1d).
    """

    mask_ratio: float = 0.75
    decoder_width: int | None = None
    decoder_depth: int | None = None
    normalize_pixels: bool = True

    def __post_init__(self) -> None:
        if not 0 < self.mask_ratio < 1:
            raise UserError(f"the mask_ratio of MAE must lie between 0 and 1; got {self.mask_ratio}")
        require_at_least("MAE", self, decoder_width=1, decoder_depth=1)


class Decoder(nn.Module):
    """A small transformer over all patches: the encoded ones in their places, one learnt token in all others.

    Args:
        encoder: whose tokens it takes, and whose patches it rebuilds.
        width: channels of its own tokens, a multiple of 4, and from 64 on of 32, one attention head for each.
        depth: blocks.

    Raises:
        ValueError: for another width.
    """

    def __init__(self, encoder: VisionTransformer, width: int, depth: int) -> None:
        super().__init__()
        self.native_grid = encoder.native_grid
        self.embed = nn.Linear(encoder.feature_dim, width)
        self.mask_token = nn.Parameter(torch.empty(1, 1, width))
        self.pos_embed = nn.Parameter(sincos_positions(width, *self.native_grid), requires_grad=False)
        self.blocks = nn.Sequential(*(Block(width, max(1, width // _HEAD_WIDTH)) for _ in range(depth)))
        self.norm = nn.LayerNorm(width, eps=encoder.norm.eps)
        self.pred = nn.Linear(width, 3 * encoder.patch_size**2)
        init_weights(self)
        nn.init.normal_(self.mask_token, std=0.02)

    def forward(self, tokens: Tensor, ids_restore: Tensor, grid: tuple[int, int]) -> Tensor:
        """Predicted pixels of all patches, in their order.

        Args:
            tokens: (N, 1 + K, D) of the encoder, the class token first.
            ids_restore: (N, L) int64 of ``random_masking``.
            grid: rows and columns, L in all.
        Returns:
            (N, L, P P 3).
        """
        x = self.embed(tokens)
        positions = resized_positions(self.pos_embed, self.native_grid, grid)
        patches = restore_patches(x[:, 1:], ids_restore, self.mask_token, pos_embed=positions[:, 1:])
        class_token = (x[:, :1] + positions[:, :1]).to(patches.dtype)
        x = self.norm(self.blocks(torch.cat([class_token, patches], dim=1)))
        prediction: Tensor = self.pred(x[:, 1:])
        return prediction


class MAE(Method):
    """MAE (arXiv:2111.06377, section 3). The encoder sees the visible patches alone; the decoder is thrown away."""

    Config = MAEConfig
    # Optimiser as in table 8, but for the rate: the paper's 1.5e-4 for each 256 images is for larger networks.
    recipe = MappingProxyType(
        {
            "encoder": "vit_micro",
            "optim": {"name": "adamw", "lr": 1e-3, "weight_decay": 0.05, "momentum": 0.9, "beta2": 0.95},
        }
    )
    encoder: VisionTransformer

    def __init__(self, encoder: nn.Module, config: MAEConfig) -> None:
        if not isinstance(encoder, VisionTransformer):
            raise UserError(f"MAE hides patches, which a {type(encoder).__name__} does not have: give it a vit_*")
        super().__init__(encoder, config)
        length = encoder.native_grid[0] * encoder.native_grid[1]
        kept = kept_patches(length, config.mask_ratio)
        if not 0 < kept < length:
            raise UserError(
                f"a mask_ratio of {config.mask_ratio} hides {length - kept} of {length} patches: MAE needs some that "
                "are hidden and some that are not; set a smaller patch_size or another mask_ratio"
            )
        width = encoder.feature_dim // 2 if config.decoder_width is None else config.decoder_width
        depth = max(1, len(encoder.blocks) // 3) if config.decoder_depth is None else config.decoder_depth
        self.decoder = Decoder(encoder, width, depth)
        self.loss = MAELoss(encoder.patch_size, normalize_pixels=config.normalize_pixels)

    @classmethod
    def view_plan(cls, size: int) -> plans.ViewPlan:
        """One view by crop and flip (section 4.1)."""
        return plans.mae(size)

    def forward(self, views: list[Tensor]) -> Tensor:
        """views: one (N, 3, H, W) batch. Returns the scalar loss of the hidden patches, drawn anew at each call."""
        (images,) = views
        prediction, mask = self._rebuild(images)
        loss: Tensor = self.loss(images, prediction, mask)
        return loss

    def _rebuild(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(N, L, P P 3) predicted pixels of ``images`` under a random mask, and the mask, (N, L), 1 where hidden."""
        grid = self.encoder.grid(images)
        ids_keep, ids_restore, mask = random_masking(
            len(images), grid[0] * grid[1], self.config.mask_ratio, device=images.device
        )
        tokens = self.encoder.tokens(images, ids_keep)
        return self.decoder(tokens, ids_restore, grid), mask

    @torch.no_grad()
    def pictures(self, views: list[Tensor]) -> dict[str, Tensor]:
        """``masked``: what the encoder sees; ``reconstructed``: that, and the rest as predicted; ``original``.

        Brightness and contrast of a predicted patch are the original's where ``normalize_pixels`` leaves them open.
        """
        (images,) = views
        prediction, mask = self._rebuild(images)
        side, grid = self.encoder.patch_size, self.encoder.grid(images)
        hidden, seen = mask[:, :, None].bool(), patchify(images, side)
        predicted = self.loss.pixels(images, prediction)
        return {
            "masked": unpatchify(seen.masked_fill(hidden, 0.0), side, grid),
            "reconstructed": unpatchify(torch.where(hidden, predicted, seen), side, grid),
            "original": images,
        }
