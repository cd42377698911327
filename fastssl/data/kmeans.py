"""k-means of a few dimensions, the same at each call: the colours of a set of videos."""

from __future__ import annotations

import torch
from torch import Tensor

# Points that are clustered at most; of more, so many are taken at equal distances.
MOST_POINTS = 1 << 16
_ITERATIONS = 100


def kmeans(points: Tensor, k: int) -> Tensor:
    """``k`` centres of ``points`` by Lloyd's iterations from k-means++ (Arthur and Vassilvitskii, 2007).

    Deterministic: the first centres are drawn by a generator of its own. Where there are fewer different points than
    ``k``, some centres are equal.

    Args:
        points: (M, D) floating-point, M >= 1, finite.
        k: 1 or more.
    Returns:
        (k, D) float32, in the order of their coordinates.
    Raises:
        ValueError: for another shape, an empty one, or k < 1.
    """
    if points.ndim != 2 or points.numel() == 0 or k < 1:
        raise ValueError(f"kmeans: needs points (M, D), not empty, and k of at least 1; got {tuple(points.shape)}, {k}")
    taken = torch.linspace(0, len(points) - 1, min(len(points), MOST_POINTS), dtype=torch.float64).long()
    # on the CPU and in float64: few points, and sums that come out alike everywhere
    x = points.detach().cpu()[taken].double()
    centers = _spread(x, k)
    for _ in range(_ITERATIONS):
        member = torch.nn.functional.one_hot(torch.cdist(x, centers).argmin(1), k).double()
        count = member.sum(0)[:, None]
        moved = torch.where(count > 0, member.T @ x / count.clamp(min=1), centers)
        if torch.equal(moved, centers):
            break
        centers = moved
    ordered = sorted(centers.tolist())
    return torch.tensor(ordered, dtype=torch.float32, device=points.device)


def _spread(x: Tensor, k: int) -> Tensor:
    """(k, D): each next one drawn with a probability that grows as the square of its distance to those there are."""
    draw = torch.rand(k, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    chosen = [int(draw[0] * len(x))]
    nearest = torch.full((len(x),), torch.inf, dtype=torch.float64)
    for u in draw[1:]:
        nearest = torch.minimum(nearest, (x - x[chosen[-1]]).square().sum(1))
        upto = nearest.cumsum(0)
        chosen.append(min(int(torch.searchsorted(upto, u * upto[-1], right=True)), len(x) - 1))
    return x[chosen]
