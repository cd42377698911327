"""MAE's encoder, forward and backward, on a quarter of the patches beside all of them: what its asymmetry saves.

Ours embeds all patches, takes those that are visible and runs the blocks on these alone; "all patches visible" is the
same network on the same images without masking.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from benchmarks import where
from benchmarks.harness import OURS, Case, Work
from fastssl import models
from fastssl.ops import random_masking

RATIO, SIDE = 0.75, 224


def inputs(batch: int) -> Tensor:
    return torch.randn(batch, 3, SIDE, SIDE, generator=where.generator())


def encoder_work(name: str, batch: int, dtype: torch.dtype, *, masked: bool) -> Work:
    """Forward and backward under autocast, if the dtype is not float32; a loss that reaches all tokens."""
    torch.manual_seed(0)
    encoder, images = models.get(name)(image_size=SIDE), inputs(batch)
    length = encoder.native_grid[0] * encoder.native_grid[1]
    autocast = functools.partial(torch.autocast, where.device().type, dtype, enabled=dtype != torch.float32)

    def work() -> tuple[Tensor, ...]:
        encoder.zero_grad(set_to_none=True)
        ids = random_masking(batch, length, RATIO, device=images.device)[0] if masked else None
        with autocast():
            tokens = encoder.tokens(images, ids)
        tokens.float().square().mean().backward()
        return (tokens.detach(),)

    return work


def operations(name: str, batch: int, *, masked: bool) -> float:
    """Multiply-adds twice, forward once and backward twice: those of all matrix products."""
    with torch.device("meta"):  # its shapes are asked for, not its weights
        encoder = models.get(name)(image_size=SIDE)
    length = encoder.native_grid[0] * encoder.native_grid[1]
    seen = 1 + (length - round(RATIO * length) if masked else length)
    width = encoder.feature_dim
    block = 12 * width**2 * seen + 2 * width * seen**2
    embedding = 3 * encoder.patch_size**2 * width * length
    return 6.0 * batch * (len(encoder.blocks) * block + embedding)


def cases() -> list[Case]:
    return [
        Case(
            op="mae_encoder",
            shape=f"{name}, {batch} images of {SIDE}, {RATIO:.0%} hidden",
            dtype=str(dtype).removeprefix("torch."),
            providers={
                OURS: functools.partial(encoder_work, name, batch, dtype, masked=True),
                "all patches visible": functools.partial(encoder_work, name, batch, dtype, masked=False),
            },
            operations=operations(name, batch, masked=True),
            peak=dtype == torch.float32,
        )
        for name, batch, dtype in where.sizes(
            cpu=(("vit_small", 16, torch.float32), ("vit_small", 16, torch.bfloat16), ("vit_base", 8, torch.float32)),
            gpu=(("vit_base", 256, torch.bfloat16), ("vit_base", 64, torch.float32)),
            small=(("vit_micro", 2, torch.float32),),
        )
    ]
