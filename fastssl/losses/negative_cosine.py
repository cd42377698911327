"""The loss of BYOL and SimSiam."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from fastssl.losses import _rows


def negative_cosine_similarity(x0: Tensor, x1: Tensor) -> Tensor:
    """Minus the mean cosine of the angles between rows (SimSiam, arXiv:2011.10566, eq. 1), in [-1, 1].

    Args:
        x0, x1: (N, D).
    Returns:
        The scalar, in float32 (float64 for float64 inputs).
    Raises:
        TypeError: for rows that are no floating-point tensors, or of two dtypes that autocast does not make one.
        ValueError: for other shapes, no sample or feature, or two devices.
    """
    return mean_of(*_rows.pair("NegativeCosineSimilarity", ("x0", x0), ("x1", x1)))


def mean_of(x0: Tensor, x1: Tensor, dim: int = 1, eps: float = 1e-8) -> Tensor:
    """The formula along any dimension, of inputs that were checked."""
    return -cosine_similarity(_rows.widened(x0), _rows.widened(x1), dim, eps).mean()


class NegativeCosineSimilarity(nn.Module):
    """``negative_cosine_similarity`` as a module.

    SimSiam and BYOL give the gradient to one side only: detach the other.
    """

    def forward(self, x0: Tensor, x1: Tensor) -> Tensor:
        """x0, x1: (N, D). Returns the scalar. Raises what ``negative_cosine_similarity`` does."""
        return negative_cosine_similarity(x0, x1)
