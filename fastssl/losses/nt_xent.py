"""NT-Xent, the loss of SimCLR, on features that need not be normalised."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import normalize

from fastssl import ops
from fastssl.ops._check import positive


class NTXent(nn.Module):
    """Normalised temperature-scaled cross-entropy of two views (SimCLR, arXiv:2002.05709, eq. 1).

    Memory grows with N D, not with N^2. Deterministic. See ``fastssl.ops.nt_xent`` for the formula.

    Args:
        temperature: divides the cosine similarities; finite, > 0. The paper uses 0.1 on ImageNet and 0.5 on CIFAR-10.
        normalized: True if rows already have unit length; they are normalised inside otherwise.
    Raises:
        ValueError: if the temperature is not finite and positive.
    """

    def __init__(self, temperature: float, *, normalized: bool = False) -> None:
        super().__init__()
        self.temperature = positive("NTXent", "temperature", temperature)
        self.normalized = normalized

    def forward(self, z0: Tensor, z1: Tensor) -> Tensor:
        """z0, z1: (N, D) features of two views of the same N samples. Returns the scalar mean loss in nats."""
        if not self.normalized:
            z0, z1 = normalize(z0, dim=1), normalize(z1, dim=1)
        return ops.nt_xent(z0, z1, temperature=self.temperature)

    def extra_repr(self) -> str:
        return f"temperature={self.temperature}, normalized={self.normalized}"
