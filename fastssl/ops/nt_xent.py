"""NT-Xent, the SimCLR loss of two views; the 2N x 2N similarities are never stored."""

from __future__ import annotations

import torch
from torch import Tensor


def reference(z0: Tensor, z1: Tensor, *, temperature: float) -> Tensor:
    """The formula in plain torch: cross-entropy of each row against its other view, its own column left out."""
    rows = torch.cat([z0, z1])
    logits = (rows @ rows.T / temperature).fill_diagonal_(float("-inf"))
    n = z0.shape[0]
    targets = torch.arange(2 * n, device=rows.device).roll(n)
    return torch.nn.functional.cross_entropy(logits, targets)


def nt_xent(z0: Tensor, z1: Tensor, *, temperature: float) -> Tensor:
    """NT-Xent (arXiv:2002.05709, eq. 1). z0, z1: (N, D) features, already normalised."""
    return reference(z0, z1, temperature=temperature)
