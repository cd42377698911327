"""lightly's functions: momentum, shuffling, tokens and patches."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn

from fastssl import losses, ops
from fastssl.losses import _group, _rows
from fastssl.ops import _check


@torch.no_grad()
def update_momentum(model: nn.Module, model_ema: nn.Module, m: float) -> None:
    """``model_ema``'s parameters follow ``model``'s with momentum ``m``; its buffers stay."""
    ops.ema_update_(list(model_ema.parameters()), list(model.parameters()), float(m))


def deactivate_requires_grad(model: nn.Module) -> None:
    """No parameter of ``model`` gets a gradient any more."""
    model.requires_grad_(False)


@torch.no_grad()
def batch_shuffle(batch: Tensor, distributed: bool = False) -> tuple[Tensor, Tensor]:
    """The batch in a random order, over all processes if ``distributed``, and what ``batch_unshuffle`` needs.

    Raises:
        RuntimeError: if ``distributed`` before torch.distributed is initialised.
        ValueError: on every process, if their batches differ in shape or dtype.
    """
    if not distributed:
        shuffle = torch.randperm(len(batch), device=batch.device)
        return batch[shuffle], shuffle
    everyones = _gathered("batch_shuffle", batch)
    order = torch.randperm(len(everyones), device=batch.device)
    dist.broadcast(order, src=0)
    return everyones[order.chunk(dist.get_world_size())[dist.get_rank()]], order.argsort()


@torch.no_grad()
def batch_unshuffle(batch: Tensor, shuffle: Tensor, distributed: bool = False) -> Tensor:
    """The order before ``batch_shuffle``. Raises what it does."""
    if not distributed:
        return batch[shuffle.argsort()]
    return _gathered("batch_unshuffle", batch)[shuffle.chunk(dist.get_world_size())[dist.get_rank()]]


def _gathered(owner: str, batch: Tensor) -> Tensor:
    everyone = _group.resolved(owner, "world")
    assert everyone is not None
    _group.agreed(owner, everyone, lambda: (_rows.not_empty(owner, _check.tensor(owner, "batch", batch)),))
    return _group.gathered(batch, everyone)


def random_token_mask(
    size: tuple[int, int],
    mask_ratio: float = 0.6,
    mask_class_token: bool = False,
    device: torch.device | str | None = None,
) -> tuple[Tensor, Tensor]:
    """(index_keep, index_mask) of random tokens. ``size`` is (B, L), the class token, which is first, among the L."""
    batch, length = size
    kept = int((length - (not mask_class_token)) * (1 - mask_ratio))  # of 0.9 and 10 it is 0: as lightly counts
    noise = torch.rand(batch, length, device=device)
    if not mask_class_token and length > 0:
        noise[:, 0] = -1
        kept = max(1, kept + 1)
    order = noise.argsort(dim=1)
    return order[:, :kept], order[:, kept:]


def patchify(images: Tensor, patch_size: int) -> Tensor:
    """(N, C, S, S) as (N, L, P P C), the pixels of a patch row by row, channels last."""
    height, width = images.shape[2:]
    assert height == width, f"images must be square; got {height} x {width}"
    return losses.patchify(images, patch_size)


def unpatchify(patches: Tensor, patch_size: int, channels: int = 3) -> Tensor:
    """The images of ``patchify``."""
    side = round(patches.shape[1] ** 0.5)
    assert side * side == patches.shape[1], f"patches must be of square images; got {patches.shape[1]}"
    images = losses.unpatchify(patches, patch_size, (side, side))
    assert images.shape[1] == channels, f"patches hold {images.shape[1]} channels; got channels={channels}"
    return images


def repeat_token(token: Tensor, size: tuple[int, int]) -> Tensor:
    """(1, 1, D) as (B, L, D), for ``size`` (B, L)."""
    return token.repeat(*size, 1)


def get_at_index(tokens: Tensor, index: Tensor) -> Tensor:
    """(B, L, D) tokens at (B, K) places: (B, K, D)."""
    return tokens.gather(1, _expanded(index, tokens))


def set_at_index(tokens: Tensor, index: Tensor, value: Tensor) -> Tensor:
    """A copy of the tokens with ``value`` (B, K, D) at the places ``index`` (B, K)."""
    return tokens.scatter(1, _expanded(index, tokens), value)


def mask_at_index(tokens: Tensor, index: Tensor, mask_token: Tensor) -> Tensor:
    """A copy of the tokens with ``mask_token`` (1, 1, D) at the places ``index`` (B, K)."""
    here = torch.zeros(tokens.shape[:2], dtype=torch.bool, device=tokens.device).scatter(1, index, True)
    return torch.where(here[..., None], mask_token, tokens)  # of both dtypes, the wider


def _expanded(index: Tensor, tokens: Tensor) -> Tensor:
    return index[..., None].expand(-1, -1, tokens.shape[-1])
