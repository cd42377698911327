"""Images whose class is seen at once, for the tests of what is trained with labels."""

from __future__ import annotations

import torch

from fastssl.data.images import ImageSet, Splits


def stripes(count: int, seed: int) -> ImageSet:
    """Noise with stripes, lying in one class and standing in the other: what a linear layer on mean colours misses."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 2
    lying = (torch.arange(16) % 4 < 2).long()[:, None].expand(16, 16) * 120
    pattern = torch.stack([lying, lying.T])[labels][:, None]
    noise = torch.randint(100, (count, 3, 16, 16), generator=generator)
    names = tuple(f"{seed}-{i}.png" for i in range(count))
    return ImageSet((pattern + noise).to(torch.uint8), labels, ("lying", "standing"), names, "stripes")


def splits() -> Splits:
    return Splits(stripes(40, 0), stripes(20, 1))
