"""The loss of BYOL and SimSiam."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from fastssl.losses import _rows


class NegativeCosineSimilarity(nn.Module):
    """Minus the mean cosine of the angles between rows (SimSiam, arXiv:2011.10566, eq. 1).

    In [-1, 1]. SimSiam and BYOL give the gradient to one side only: detach the other.
    """

    def forward(self, x0: Tensor, x1: Tensor) -> Tensor:
        """x0, x1: (N, D). Returns the scalar, in float32 (float64 for float64 inputs).

        Raises:
            TypeError: for rows that are no floating-point tensors, or of two dtypes that autocast does not make one.
            ValueError: for other shapes, no sample or feature, or two devices.
        """
        x0, x1 = _rows.pair("NegativeCosineSimilarity", ("x0", x0), ("x1", x1))
        return -cosine_similarity(_rows.widened(x0), _rows.widened(x1), dim=1).mean()
