"""open_clip's loss in a step of its users: unit features and the learnt scale in, forward and backward."""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor
from torch.nn.functional import normalize

from benchmarks import rivals, where
from benchmarks.harness import Case
from benchmarks.losses import Loss, forward_backward, whole
from fastssl.compat.open_clip import ClipLoss
from fastssl.ops.clip_loss import reference  # type: ignore[attr-defined]

SCALE = math.log(1 / 0.07)  # where CLIP's begins


def inputs(n: int, d: int) -> list[Tensor]:
    generator = where.generator()
    images, noise = (torch.randn(n, d, generator=generator) for _ in range(2))
    rows = [normalize(x, dim=1).requires_grad_() for x in (images, images + noise)]
    return [*rows, torch.tensor(SCALE, requires_grad=True)]


def exact(images: Tensor, texts: Tensor, scale: Tensor) -> Tensor:
    return reference(images.double(), texts.double(), scale.double().exp())


def clip(n: int, d: int) -> Case:
    def with_scale(criterion: Loss) -> Loss:
        return lambda images, texts, scale: criterion(images, texts, scale.exp())

    made = functools.partial(inputs, n, d)
    return Case(
        op="open_clip",
        shape=f"ClipLoss N={n} d={d}",
        dtype="float32",
        providers=whole(
            "open_clip ClipLoss",
            lambda: with_scale(ClipLoss()),
            lambda: with_scale(rivals.load("open_clip.loss").ClipLoss()),
            made,
        ),
        exact=lambda: forward_backward(exact, *made())(),
        peak=True,
    )


def cases() -> list[Case]:
    return [clip(n, d) for n, d in where.sizes(cpu=((2048, 512), (4096, 512)), small=((8, 16),))]
