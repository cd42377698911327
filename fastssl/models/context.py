"""Contexts, what was seen so far, and predictions of what comes from them: the parts of contrastive predictive coding.

In the paper's symbols (arXiv:1807.03748): latents z_t of an encoder, contexts c_t of an autoregressive network, and a
matrix W_k for each number of steps k that is predicted ahead.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class RowContext(nn.Module):
    """What each row of a map and those above show, by causal convolutions (CPC, arXiv:1807.03748, section 3.3).

    A PixelCNN that goes by rows: a layer looks at its own row, one place to the left and right, and the row above.

    Args:
        dim: channels of the map.
        layers: each adds a row above, and a place to both sides, to what a context sees.
    Raises:
        ValueError: for a number below 1.
    """

    def __init__(self, dim: int, layers: int) -> None:
        super().__init__()
        if min(dim, layers) < 1:
            raise ValueError(f"a context of rows needs dim and layers of at least 1; got {dim} and {layers}")
        self.layers = nn.ModuleList(_RowLayer(dim) for _ in range(layers))

    def forward(self, maps: Tensor) -> Tensor:
        """maps: (N, dim, h, w). Returns (N, dim, h, w), of which no row knows of those below."""
        for layer in self.layers:
            maps = layer(maps)
        return maps


class _RowLayer(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(dim, dim, 1)
        self.look = nn.Conv2d(dim, dim, (2, 3))
        self.expand = nn.Conv2d(dim, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        seen = self.look(F.pad(F.relu(self.reduce(x)), (1, 1, 1, 0)))  # a row of zeros above, none below
        return x + self.expand(F.relu(seen))  # type: ignore[no-any-return]


class StepsAhead(nn.Module):
    """``W_k c_t`` of each k beside the ``z_{t+k}`` that it is to tell from others (CPC, arXiv:1807.03748, eq. 3).

    Args:
        context_dim: length of the contexts c.
        dim: length of the latents z.
        first, last: the least and the greatest k.
    Raises:
        ValueError: for a number below 1, or a last step before the first.
    """

    def __init__(self, context_dim: int, dim: int, first: int, last: int) -> None:
        super().__init__()
        if min(context_dim, dim, first) < 1 or last < first:
            raise ValueError(
                f"predictions need dimensions and steps of at least 1, the last not before the first; "
                f"got context_dim={context_dim}, dim={dim}, first={first}, last={last}"
            )
        self.first, self.last = first, last
        self.predict = nn.ModuleList(nn.Linear(context_dim, dim, bias=False) for _ in range(first, last + 1))

    def forward(self, contexts: Tensor, latents: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Predictions and their targets, of each k (M_k, dim), as `fastssl.losses.CPCLoss` takes them.

        Args:
            contexts: (N, T, ..., context_dim), T more than ``last``; predicted is along T.
            latents: (N, T, ..., dim).
        Raises:
            ValueError: naming T, if it is too short.
        """
        steps = latents.shape[1]
        if steps <= self.last:
            raise ValueError(f"to predict {self.last} steps ahead takes {self.last + 1} or more; got {steps}")
        ahead = range(self.first, self.last + 1)
        predictions = [
            predict(contexts[:, : steps - k]).flatten(0, -2) for k, predict in zip(ahead, self.predict, strict=True)
        ]
        return predictions, [latents[:, k:].flatten(0, -2) for k in ahead]
