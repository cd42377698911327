"""Where a convolutional encoder looks: attention maps of its activations."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

HIGHEST_POWER = 4


def attention_maps(encoder: nn.Module, images: Tensor) -> list[Tensor]:
    """For the end of each stage the sum over channels of |activation|^p, as RotNet draws it (arXiv:1803.07728, 3.2).

    The power p is 1 for the first stage, 2 for the second and 4 for all others, as there for three layers of AlexNet.

    Args:
        encoder: with ``stages(images)``, which gives its maps, as a ResNet and AlexNet have it.
        images: (N, 3, H, W) floating-point images, normalised.
    Returns:
        For each stage (N, H, W) float32, enlarged to the images, each map from 0, its least value, to 1, its largest.
    Raises:
        ValueError: for an encoder without stages.
    """
    stages = getattr(encoder, "stages", None)
    if stages is None:
        raise ValueError(f"attention_maps: a {type(encoder).__name__} has no stages of maps")
    maps = []
    with torch.no_grad():
        for i, activations in enumerate(stages(images)):
            power = min(2**i, HIGHEST_POWER)
            summed = activations.float().abs().pow(power).sum(dim=1, keepdim=True)
            large = F.interpolate(summed, size=images.shape[2:], mode="bilinear", align_corners=False)[:, 0]
            low, high = (bound(large, dim=(1, 2), keepdim=True) for bound in (torch.amin, torch.amax))
            # relative to the map's size: interpolation leaves a constant map differences that are small but not none
            maps.append(torch.where(high - low > 1e-6 * high, (large - low) / (high - low), 0.0))
    return maps


def heat(images: Tensor, attention: Tensor) -> Tensor:
    """Grey images with what is attended to in red, then yellow, then white.

    Args:
        images: (N, 3, H, W) in [0, 1].
        attention: (N, H, W) in [0, 1].
    Returns:
        (N, 3, H, W) in [0, 1].
    """
    colours = torch.stack([(3 * attention - i).clamp(0, 1) for i in range(3)], dim=1)
    return (0.4 * images.mean(dim=1, keepdim=True) + 0.6 * colours).clamp(0, 1)
