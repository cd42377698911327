"""Images for the tests of the report."""

from __future__ import annotations

from dataclasses import replace

import torch

from fastssl.data.images import ImageSet, Skipped


def images(count: int, seed: int) -> ImageSet:
    """Noise around three colours, one a class."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 3
    colours = torch.tensor([[200, 60, 60], [60, 200, 60], [60, 60, 200]])[labels].view(count, 3, 1, 1)
    noise = torch.randint(-50, 50, (count, 3, 16, 16), generator=generator)
    return ImageSet(
        images=(colours + noise).to(torch.uint8),
        labels=labels,
        classes=("red", "green", "<blue>"),
        names=tuple(f"{seed}-{i}.png" for i in range(count)),
        source="noise",
        skipped=(Skipped("bad <file>.png", "cut off"),),
    )


def without_labels(data: ImageSet) -> ImageSet:
    return replace(data, labels=None, classes=())
