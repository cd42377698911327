"""Vision Transformers (Dosovitskiy et al., arXiv:2010.11929) without their classifier; parameters named as in timm.

timm's ``create_model("vit_small_patch16_224", num_classes=0)`` loads the state dict of ours with ``strict=True``, and
the other way round. Beside whole images, the encoder takes only the patches that a masked autoencoder leaves visible.
"""

from __future__ import annotations

from functools import partial
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastssl.models import _check
from fastssl.ops import take_patches

Positions = Literal["sincos", "learnt"]
Pool = Literal["mean", "token"]

_NORM_EPS = 1e-6  # of the published networks; torch's own default is another
_HEAD_WIDTH = 64  # channels of an attention head in the published networks


class Attention(nn.Module):
    """Multi-head self-attention (arXiv:1706.03762, section 3.2)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"the heads must divide the width; got {heads} heads for a width of {width}")
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def _split(self, x: Tensor) -> tuple[Tensor, ...]:
        """Queries, keys and values of x, each (N, heads, T, width / heads)."""
        split: Tensor = self.qkv(x).unflatten(2, (3, self.heads, -1))
        return split.permute(2, 0, 3, 1, 4).unbind(0)

    def weights(self, x: Tensor) -> Tensor:
        """x: (N, T, width). Returns (N, heads, T, T): how much a token, by rows, takes of each; rows add up to 1."""
        queries, keys, _ = self._split(x)
        scores: Tensor = queries @ keys.transpose(2, 3) * queries.shape[3] ** -0.5
        return scores.softmax(dim=3)

    def forward(self, x: Tensor) -> Tensor:
        """x: (N, T, width). Returns (N, T, width)."""
        queries, keys, values = self._split(x)
        mixed = F.scaled_dot_product_attention(queries, keys, values)
        out: Tensor = self.proj(mixed.transpose(1, 2).flatten(2))
        return out


class MLP(nn.Module):
    """Two linear layers with GELU between, four times as wide inside."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """x: (..., width). Returns (..., width)."""
        out: Tensor = self.fc2(F.gelu(self.fc1(x)))
        return out


class Block(nn.Module):
    """Attention and an MLP, each normalised first and added to its input (arXiv:2010.11929, eq. 2 and 3)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=_NORM_EPS)
        self.attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=_NORM_EPS)
        self.mlp = MLP(width)

    def forward(self, x: Tensor) -> Tensor:
        """x: (N, T, width). Returns (N, T, width)."""
        x = x + self.attn(self.norm1(x))
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


class PatchEmbed(nn.Module):
    """Every patch of an image times one matrix: a convolution whose stride is its kernel, with that one's weight."""

    def __init__(self, patch_size: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, patch_size, stride=patch_size)

    def forward(self, images: Tensor) -> Tensor:
        """images: (N, 3, H, W). Returns (N, L, width), rows of patches from top to bottom.

        Each patch's channels lie together in memory, as nothing that follows would have them from a convolution.
        """
        side = self.proj.kernel_size[0]
        rows, columns = images.shape[2] // side, images.shape[3] // side
        split = images.reshape(len(images), 3, rows, side, columns, side)
        pixels = split.permute(0, 2, 4, 1, 3, 5).reshape(len(images), rows * columns, 3 * side**2)
        return F.linear(pixels, self.proj.weight.flatten(1), self.proj.bias)


def sincos_positions(width: int, rows: int, columns: int) -> Tensor:
    """Sine-cosine position embedding of a grid, with zeros for the class token before it.

    Half of the channels tell the column and half the row, each by sines and then cosines of ``width / 4`` wavelengths
    from 2 pi to 10,000 * 2 pi patches (arXiv:1706.03762, section 3.5): the embedding of MAE (arXiv:2111.06377,
    appendix A.1) and its code's order.

    Args:
        width: channels, a multiple of 4.
        rows: of the grid. columns: likewise.
    Returns:
        (1, 1 + rows * columns, width) float32.
    Raises:
        ValueError: for another width.
    """
    if width % 4:
        raise ValueError(f"sine-cosine positions need a width that is a multiple of 4; got {width}")
    frequencies = 10_000.0 ** (-torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    angles = [axis.flatten()[:, None] * frequencies for axis in (x, y)]
    embedding = torch.cat([turned for angle in angles for turned in (angle.sin(), angle.cos())], dim=1)
    return F.pad(embedding, (0, 0, 1, 0)).float()[None]


def resized_positions(positions: Tensor, old: tuple[int, int], new: tuple[int, int]) -> Tensor:
    """Those of a ``new`` grid (rows, columns), of ``positions`` (1, 1 + L, D) of an ``old`` one.

    By bicubic interpolation, antialiased, as timm does it; the class token's, which comes first, stays as it is.
    """
    if old == new:
        return positions
    grid = positions[:, 1:].transpose(1, 2).reshape(1, -1, *old)
    wide = grid.to(torch.promote_types(grid.dtype, torch.float32))  # there is no other interpolation on a CPU
    grid = F.interpolate(wide, size=new, mode="bicubic", antialias=True).to(grid.dtype)
    return torch.cat([positions[:, :1], grid.flatten(2).transpose(1, 2)], dim=1)


def init_weights(module: nn.Module) -> None:
    """Xavier-uniform matrices and zero biases in ``module``, the patch embedding's taken as a matrix.

    As in ViT's own code, which MAE follows (arXiv:2111.06377, appendix A.1).
    """
    for part in module.modules():
        if isinstance(part, nn.Linear | nn.Conv2d):
            nn.init.xavier_uniform_(part.weight.data.flatten(1))
            if part.bias is not None:
                nn.init.zeros_(part.bias)


class VisionTransformer(nn.Module):
    """A Vision Transformer that ends at its pooled features.

    Args:
        patch_size: side of a patch, in pixels.
        width: channels of a token.
        depth: blocks.
        heads: attention heads; None is one for every 64 channels, as in the published networks.
        image_size: side of the images, in pixels, whose grid the position embedding is made for. Images of other sizes
            get it interpolated.
        positions: "sincos" is a fixed table, MAE's; "learnt" starts at random, and training moves it.
        pool: what becomes the features: "mean" of the patches' tokens, or the class "token". Both exist either way.

    Attributes:
        feature_dim: length of a feature vector, ``width``.

    Raises:
        ValueError: for a number below 1, a name that is none of these, patches that do not fill the image, heads that
            do not divide the width, or a width that is no multiple of 4 with "sincos".
    """

    def __init__(
        self,
        *,
        patch_size: int = 16,
        width: int = 384,
        depth: int = 12,
        heads: int | None = None,
        image_size: int = 224,
        positions: Positions = "sincos",
        pool: Pool = "mean",
    ) -> None:
        super().__init__()
        heads = max(1, width // _HEAD_WIDTH) if heads is None else heads
        numbers = {"patch_size": patch_size, "width": width, "depth": depth, "heads": heads, "image_size": image_size}
        for name, number in numbers.items():
            if number < 1:
                raise ValueError(f"vit: {name} must be at least 1; got {number}")
        for name, choice, choices in (("positions", positions, get_args(Positions)), ("pool", pool, get_args(Pool))):
            if choice not in choices:
                raise ValueError(f"vit: {name} must be one of {', '.join(choices)}; got {choice!r}")
        self.patch_size, self.feature_dim, self.pool = patch_size, width, pool
        self.native_grid = self._grid(image_size, image_size)
        self.cls_token = nn.Parameter(torch.empty(1, 1, width))
        self.pos_embed = nn.Parameter(sincos_positions(width, *self.native_grid), positions == "learnt")
        self.patch_embed = PatchEmbed(patch_size, width)
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(width, eps=_NORM_EPS)
        init_weights(self)
        nn.init.normal_(self.cls_token, std=0.02)
        if positions == "learnt":
            nn.init.trunc_normal_(self.pos_embed, std=0.02)

    def _grid(self, height: int, width: int) -> tuple[int, int]:
        if height % self.patch_size or width % self.patch_size or not height or not width:
            raise ValueError(f"vit: patches of {self.patch_size} pixels do not fill images of {height} x {width}")
        return height // self.patch_size, width // self.patch_size

    def grid(self, images: Tensor) -> tuple[int, int]:
        """Rows and columns of patches in ``images`` (N, 3, H, W).

        Raises:
            ValueError, TypeError: naming the shape or dtype received, for another, or sides that patches do not fill.
        """
        _check.images("vit", images)
        return self._grid(images.shape[2], images.shape[3])

    def block_names(self) -> list[tuple[str, ...]]:
        """The transformer's blocks, for `fastssl.models.depth.layers`."""
        return [(f"blocks.{i}",) for i in range(len(self.blocks))]

    def half_block_names(self) -> tuple[str, ...]:
        """The MLP of the last block with its normalisation: half a block, as MAE counts (arXiv:2111.06377, 4.3)."""
        last = len(self.blocks) - 1
        return f"blocks.{last}.norm2", f"blocks.{last}.mlp"

    def tokens(
        self, images: Tensor, ids_keep: Tensor | None = None, *, masked: tuple[Tensor, Tensor] | None = None
    ) -> Tensor:
        """The normalised output of the last block, the class token first.

        Args:
            images: (N, 3, H, W) floating-point images, normalised; sides of any multiple of ``patch_size``.
            ids_keep: (N, K) int64, the patches to encode, of ``fastssl.ops.random_masking``; None is all, in order. The
                others cost one matrix product and nothing after.
            masked: (N, L) bool, True for patches that a token stands for, and that token, (1, 1, width), as iBOT has
                it; not together with ``ids_keep``.
        Returns:
            (N, 1 + K, width), the patches in the order of ``ids_keep``.
        Raises:
            ValueError, TypeError: naming the shape, dtype or index received, if it is another.
        """
        out: Tensor = self.norm(self.blocks(self._embedded(images, ids_keep, masked)))
        return out

    def class_attention(self, images: Tensor) -> Tensor:
        """How much the class token takes of each patch in the last block (DINO, arXiv:2104.14294, figure 1).

        Args:
            images: (N, 3, H, W), as for :meth:`tokens`.
        Returns:
            (N, heads, rows, columns), of the grid of patches; a head's add up to 1 with what it takes of itself.
        Raises:
            ValueError, TypeError: naming the shape or dtype received, if it is another.
        """
        last = self.blocks[-1]
        assert isinstance(last, Block)
        x = self.blocks[:-1](self._embedded(images))
        taken = last.attn.weights(last.norm1(x))[:, :, 0, 1:]
        return taken.reshape(*taken.shape[:2], *self.grid(images))

    def _embedded(
        self, images: Tensor, ids_keep: Tensor | None = None, masked: tuple[Tensor, Tensor] | None = None
    ) -> Tensor:
        """What the first block takes, (N, 1 + K, width)."""
        positions = resized_positions(self.pos_embed, self.native_grid, self.grid(images))
        x = self.patch_embed(images)
        if masked is not None:
            x = torch.where(masked[0][:, :, None], masked[1].to(x.dtype), x)
        where = positions[:, 1:]
        x = x + where if ids_keep is None else take_patches(x, ids_keep, pos_embed=where)
        class_token = (self.cls_token + positions[:, :1]).to(x.dtype)
        return torch.cat([class_token.expand(len(x), -1, -1), x], dim=1)

    def maps(self, x: Tensor) -> Tensor:
        """x: (N, 3, H, W), as for :meth:`forward`. Returns the patches' last tokens in place, (N, width, h, w)."""
        return self.tokens(x)[:, 1:].transpose(1, 2).reshape(len(x), self.feature_dim, *self.grid(x))

    def forward(self, x: Tensor) -> Tensor:
        """x: (N, 3, H, W) floating-point images, normalised, of sides that patches fill. Returns (N, feature_dim).

        Raises:
            ValueError, TypeError: naming the shape or dtype received, if it is another.
        """
        tokens = self.tokens(x)
        return tokens[:, 1:].mean(dim=1) if self.pool == "mean" else tokens[:, 0]


# For images of 32 to 64 pixels on a CPU; the patches of 8 pixels are of 64.
vit_micro = partial(VisionTransformer, patch_size=8, width=128, depth=6, image_size=64)
vit_tiny = partial(VisionTransformer, width=192)
vit_small = partial(VisionTransformer, width=384)
vit_base = partial(VisionTransformer, width=768)

ENCODERS = {"vit_micro": vit_micro, "vit_tiny": vit_tiny, "vit_small": vit_small, "vit_base": vit_base}
