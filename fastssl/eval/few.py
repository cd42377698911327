"""Few labels: subsets of a training set with equally many images of each class."""

from __future__ import annotations

import torch
from torch import Tensor

from fastssl.errors import UserError


def few_labels(labels: Tensor, *, share: float, seed: int) -> Tensor:
    """Positions, sorted, of a seeded subset with the ``share`` of the images, equally many of each class.

    Of a class that has fewer images than that, all. A smaller share's subset is within a larger one's of the same seed,
    as that of 1 % is within that of 10 % in the semi-supervised protocol (arXiv:2002.05709, section 6).

    Args:
        labels: (N,) int64.
        share: above 0, at most 1, which is every image; of the N over the number of classes, rounded, at least 1.
        seed: draws which images.
    Returns:
        (n,) int64.
    Raises:
        UserError: for another share.
        ValueError: for labels of another shape, or none.
    """
    if not 0 < share <= 1:
        raise UserError(f"the share of the labels must be above 0 and at most 1; got {share}")
    if labels.ndim != 1 or len(labels) == 0:
        raise ValueError(f"few_labels: labels must be (N,) with N >= 1; got {tuple(labels.shape)}")
    if share == 1:
        return torch.arange(len(labels))
    classes = torch.unique(labels).tolist()
    count = max(1, round(share * len(labels) / len(classes)))
    generator = torch.Generator().manual_seed(seed)
    chosen = []
    for label in classes:
        members = (labels == label).nonzero()[:, 0]
        chosen.append(members[torch.randperm(len(members), generator=generator)[:count]])
    return torch.cat(chosen).sort().values
