"""KoLeo, which spreads features over the sphere."""

from __future__ import annotations

import torch
from torch import Tensor

from fastssl.losses import _group, _rows
from fastssl.losses._group import Group
from fastssl.ops import _check

ROWS_AT_ONCE = 1024
EPSILON = 1e-8  # in the distance and in the logarithm, as in DINOv2's code: rows that are alike have a finite loss


def koleo_loss(features: Tensor, *, normalized: bool = False, group: Group = None) -> Tensor:
    """``-mean log min_{j != i} |x_i - x_j|`` of unit rows (arXiv:1806.03198, eq. 3). See ``KoLeo``.

    Args:
        features: (N, D), N at least 2 (over all processes).
    Returns:
        The scalar, in float32 (float64 for float64 features).
    Raises:
        TypeError: for features that are no floating-point tensor.
        ValueError: for another shape, fewer than two rows or no feature; with a group on every process, naming the
            ranks, if one has such input or they differ in shapes or dtypes.
        RuntimeError: for a group before torch.distributed is initialised.
    """
    owner = "KoLeo"
    processes = _group.resolved(owner, group)
    (rows,) = _group.agreed(
        owner,
        processes,
        lambda: (_rows.not_empty(owner, _check.float_tensor(owner, "features", features, "ND")),),
        normalized=normalized,
    )
    rows = _rows.unit(_rows.widened(rows), normalized)
    candidates, own = _group.with_places(rows, processes)
    if len(candidates) < 2:
        raise ValueError(f"{owner}: needs at least two rows; got {len(candidates)}")
    nearest = candidates[_nearest(rows, candidates, own)]
    distance = torch.nn.functional.pairwise_distance(rows, nearest, eps=EPSILON)
    return -(distance + EPSILON).log().mean()


class KoLeo(_group.OverGroup):
    """``-mean log min_{j != i} |x_i - x_j|`` of unit rows (arXiv:1806.03198, eq. 3; DINOv2, arXiv:2304.07193).

    The estimator of Kozachenko and Leonenko of the entropy, up to constants. The (N, N) similarities are never stored.

    Args:
        normalized: True if rows already have unit length; they are normalised inside otherwise.
        group: None, or "world" or a process group: neighbours are sought among the rows of all its processes, and the
            mean of the losses over the processes is the loss of the whole batch. (DINOv2 seeks them in each process.)
    """

    def __init__(self, *, normalized: bool = False, group: Group = None) -> None:
        super().__init__()
        self.normalized, self.group = normalized, group

    def forward(self, features: Tensor) -> Tensor:
        """features: (N, D). Returns the scalar. Raises what ``koleo_loss`` does."""
        return koleo_loss(features, normalized=self.normalized, group=self.group)

    def extra_repr(self) -> str:
        return f"normalized={self.normalized}{self.told_group()}"


@torch.no_grad()
def _nearest(rows: Tensor, candidates: Tensor, own: Tensor) -> Tensor:
    """(N) columns of the candidate with the largest product, the row itself left out."""
    found = []
    for part, places in zip(torch.split(rows, ROWS_AT_ONCE), torch.split(own, ROWS_AT_ONCE), strict=True):
        with _rows.without_autocast(rows):
            products = part @ candidates.T
        found.append(products.scatter_(1, places[:, None], -torch.inf).argmax(1))
    return torch.cat(found)
