"""lightly's negative cosine similarity."""

from __future__ import annotations

from torch import Tensor, nn

from fastssl.losses.negative_cosine import mean_of
from fastssl.ops import _check


class NegativeCosineSimilarity(nn.Module):
    """Minus the mean cosine along ``dim``.

    Args:
        dim: the dimension of the features.
        eps: the least length that a row is divided by.
    """

    def __init__(self, dim: int = 1, eps: float = 1e-8) -> None:
        super().__init__()
        self.dim, self.eps = dim, eps

    def forward(self, x0: Tensor, x1: Tensor) -> Tensor:
        """x0, x1: of one shape, with any number of dimensions. Returns the scalar in float32, or float64.

        Raises:
            TypeError: for inputs that are no floating-point tensors, or of two dtypes.
            ValueError: for two shapes or devices.
        """
        owner = "NegativeCosineSimilarity"
        for name, x in (("x0", x0), ("x1", x1)):
            _check.float_tensor(owner, name, x, "x" * _check.tensor(owner, name, x).dim())
        if x0.shape != x1.shape:
            raise ValueError(
                f"{owner}: x0 and x1 must have the same shape; got {_check.shape(x0)} and {_check.shape(x1)}"
            )
        x0, x1 = _check.as_autocast_casts(x0), _check.as_autocast_casts(x1)
        _check.alike(owner, ("x0", x0), ("x1", x1))
        return mean_of(x0, x1, self.dim, self.eps)
