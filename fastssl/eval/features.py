"""Features of images under a frozen encoder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from fastssl.data import plans
from fastssl.data.reading import Progress
from fastssl.data.rows import Rows
from fastssl.data.views import make_views

BATCH_SIZE = 256
"""Images a forward pass, unless another number is asked for."""


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """``module`` in evaluation mode; afterwards each of its parts is back in its own mode, frozen ones included."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training


@torch.no_grad()
def extract(
    encoder: nn.Module,
    images: Tensor | Rows,
    *,
    size: int,
    batch_size: int = BATCH_SIZE,
    device: torch.device | str | None = None,
    progress: Progress | None = None,
) -> Tensor:
    """Features of whole images (``plans.eval``), the encoder in evaluation mode and afterwards in its own again.

    Args:
        encoder: (B, 3, size, size) float32 to (B, F).
        images: (N, 3, S, S) uint8, or what is indexed like it; resized, if S is not ``size``.
        size: side of what the encoder sees, in pixels.
        batch_size: images a forward pass.
        device: where the encoder lies; None is the device of its first parameter.
        progress: called with (images done, images in all) after each batch.
    Returns:
        (N, F) float32 on the CPU.
    Raises:
        ValueError, TypeError: for images of another shape or dtype, or none.
    """
    if device is None:
        device = next((p.device for p in encoder.parameters()), torch.device("cpu"))
    plan = plans.eval(size)
    generator = torch.Generator()  # which the plan has no use for
    features = []
    with evaluating(encoder):
        for start in range(0, max(1, len(images)), batch_size):
            (view,) = make_views(images[start : start + batch_size].to(device), plan, generator)
            features.append(encoder(view).float().cpu())
            if progress is not None:
                progress(min(start + batch_size, len(images)), len(images))
    return torch.cat(features)
