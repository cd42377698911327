"""NT-Xent as a module."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastssl.ops import nt_xent


class NTXent(nn.Module):
    """Normalised temperature-scaled cross-entropy of two views (SimCLR, arXiv:2002.05709, eq. 1).

    Args:
        temperature: divides the cosine similarities; finite, > 0.
        normalized: True if rows already have unit length; they are normalised inside otherwise.
    """

    def __init__(self, temperature: float, *, normalized: bool = False) -> None:
        super().__init__()
        self.temperature = temperature
        self.normalized = normalized

    def forward(self, z0: Tensor, z1: Tensor) -> Tensor:
        """z0, z1: (N, D) features of two views of the same N samples. Returns the scalar mean loss in nats."""
        if not self.normalized:
            z0, z1 = (torch.nn.functional.normalize(z, dim=1) for z in (z0, z1))
        return nt_xent(z0, z1, temperature=self.temperature)

    def extra_repr(self) -> str:
        return f"temperature={self.temperature}, normalized={self.normalized}"
