"""How well masks of a video agree with the true ones: DAVIS's region similarity J and boundary accuracy F.

Perazzi et al., "A Benchmark Dataset and Evaluation Methodology for Video Object Segmentation", CVPR 2016, section 4;
what the paper leaves open, as the official evaluation of DAVIS 2017 has it.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

# Two boundaries meet that lie at most this share of the image's diagonal apart, rounded up to whole pixels.
BOUNDARY_TOLERANCE = 0.008

_CHUNK = 1 << 23  # pixels whose boundaries are widened at a time: 32 MiB of float32


def region_similarity(masks: Tensor, truth: Tensor, void: Tensor | None = None) -> Tensor:
    """J, the intersection of ``masks`` and ``truth`` over their union; 1 where both are empty.

    Args:
        masks, truth: (..., H, W) bool.
        void: (..., H, W) bool, pixels that do not count.
    Returns:
        (...) float64 in [0, 1].
    Raises:
        ValueError, TypeError: naming the shapes or dtypes received, if they disagree or are no masks.
    """
    masks, truth = _without(void, masks, truth)
    both, either = ((x.flatten(-2).sum(-1).double()) for x in (masks & truth, masks | truth))
    return torch.where(either > 0, both / either.clamp(min=1), 1.0)


def boundary_accuracy(masks: Tensor, truth: Tensor, void: Tensor | None = None) -> Tensor:
    """F, the harmonic mean of precision and recall of the boundaries' pixels.

    A pixel of one boundary is right if the other has one within ``BOUNDARY_TOLERANCE`` (both are dilated by a disk, in
    place of a matching of single pixels). Where one boundary is empty F is 0, and where both are it is 1.

    Args and Raises: as for `region_similarity`.

    Returns:
        (...) float64 in [0, 1].
    """
    masks, truth = _without(void, masks, truth)
    lines, true_lines = boundaries(masks), boundaries(truth)
    precision, recall = (
        (own & dilated(other)).flatten(-2).sum(-1).double() / own.flatten(-2).sum(-1).clamp(min=1)
        for own, other in ((lines, true_lines), (true_lines, lines))
    )
    neither = ~(lines.flatten(-2).any(-1) | true_lines.flatten(-2).any(-1))
    mean = 2 * precision * recall / (precision + recall).clamp(min=torch.finfo(torch.float64).tiny)
    return torch.where(neither, 1.0, mean)


def boundaries(masks: Tensor) -> Tensor:
    """The pixels of (..., H, W) bool that differ from the one below, to the right or aslant below right."""
    down = torch.cat([masks[..., 1:, :], masks[..., -1:, :]], -2)  # nothing lies beyond the last row and column
    right, aslant = (torch.cat([x[..., 1:], x[..., -1:]], -1) for x in (masks, down))
    return (masks ^ down) | (masks ^ right) | (masks ^ aslant)


def dilated(lines: Tensor) -> Tensor:
    """(..., H, W) bool, true within the tolerance of a true pixel."""
    height, width = lines.shape[-2:]
    radius = math.ceil(BOUNDARY_TOLERANCE * math.hypot(height, width))
    at = torch.arange(-radius, radius + 1, device=lines.device)
    disk = (at[:, None] ** 2 + at**2 <= radius**2).float()[None, None]
    maps = lines.flatten(0, -3)[:, None] if lines.ndim > 2 else lines[None, None]
    chunks = torch.split(maps, max(1, _CHUNK // (height * width)))
    # a count of whole numbers, which no order of summation brings near a half
    near = torch.cat([F.conv2d(chunk.float(), disk, padding=radius) > 0.5 for chunk in chunks])
    return near.view(lines.shape)


def _without(void: Tensor | None, *masks: Tensor) -> list[Tensor]:
    """``masks``, checked, without the pixels that do not count."""
    given = [*masks, *([] if void is None else [void])]
    if len({x.shape for x in given}) > 1 or given[0].ndim < 2 or 0 in given[0].shape:
        shapes = ", ".join(str(tuple(x.shape)) for x in given)
        raise ValueError(f"masks must be (..., H, W), not empty, and all alike; got {shapes}")
    if any(x.dtype != torch.bool for x in given):
        raise TypeError(f"masks must be bool; got {', '.join(str(x.dtype) for x in given)}")
    return list(masks) if void is None else [x & ~void for x in masks]
