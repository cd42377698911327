"""How far apart features lie, without labels: what a collapse loses."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

EPSILON = 1e-7  # RankMe's


def feature_std(features: Tensor) -> float:
    """The mean standard deviation of the features of unit rows, times sqrt(D) (SimSiam, arXiv:2011.10566, section 4.1).

    0 if all rows point in one direction, 1 if they point in all alike. Its square is about 1 less the mean cosine of
    two rows.

    Args:
        features: (N, D) floating-point.
    """
    rows = F.normalize(features.detach().float(), dim=1)
    return float(rows.std(dim=0, correction=0).mean() * features.shape[1] ** 0.5)


def effective_rank(features: Tensor) -> float:
    """RankMe (arXiv:2210.02885, eq. 1): the exponential of the entropy of the singular values' shares.

    From 1, all rows are multiples of one, to min(N, D). Computed on the CPU.

    Args:
        features: (N, D) floating-point, as they are: neither centred nor normalised.
    """
    values = torch.linalg.svdvals(features.detach().float().cpu())
    shares = values / values.sum().clamp(min=torch.finfo(values.dtype).tiny) + EPSILON
    return float(torch.special.entr(shares).sum().exp())
