"""DenseCL's loss: each place of one view against the place of the other that looks most like it."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from fastssl import ops
from fastssl.losses import _rows
from fastssl.losses.moco import MoCoLoss
from fastssl.ops import _check


class DenseContrastive(MoCoLoss):
    """InfoNCE of every place against its match and a queue (DenseCL, arXiv:2011.09157, eq. 2 and 3).

    The match of a place is the one of the other view whose backbone features are most alike. The queue holds each
    image's mean dense key. Arguments as of ``MoCoLoss``.
    """

    def forward(  # type: ignore[override]
        self, query: Tensor, key: Tensor, query_features: Tensor, key_features: Tensor
    ) -> Tensor:
        """query, key: (N, D, H, W) dense projections of the encoder and of the momentum encoder.

        query_features, key_features: (N, C, H, W) of their backbones, by which places are matched, without gradient.
        Returns the scalar mean loss in nats.
        """
        owner = "DenseContrastive"
        grids = (("query", query), ("key", key), ("query_features", query_features), ("key_features", key_features))
        for name, grid in grids:
            _check.float_tensor(owner, name, grid, "NDHW")
            if (len(grid), grid.shape[2:]) != (len(query), query.shape[2:]):
                raise ValueError(
                    f"{owner}: {name} must have the batch and places of query {_check.shape(query)}; "
                    f"got {_check.shape(grid)}"
                )
        if query.shape[1] != self.queue.shape[1] or key.shape[1] != query.shape[1]:
            raise ValueError(
                f"{owner}: the queue has keys of {self.queue.shape[1]} features; got query {_check.shape(query)} and "
                f"key {_check.shape(key)}"
            )
        places, keys = (_rows.unit(x.flatten(2).mT, self.normalized) for x in (query, key.detach()))
        matched = keys.gather(1, _matches(query_features, key_features)[..., None].expand_as(keys))
        loss = ops.queue_info_nce(
            places.flatten(0, 1), matched.flatten(0, 1), self._shared(), temperature=self.temperature
        )
        if self.training:
            self.enqueue(normalize(_rows.widened(key.detach().flatten(2)).mean(2), dim=1))
        return loss


@torch.no_grad()
def _matches(first: Tensor, second: Tensor) -> Tensor:
    """For each place of the first (N, C, H, W), that of the second with the largest cosine: (N, H W)."""
    rows, columns = (normalize(_rows.widened(x.flatten(2)), dim=1) for x in (first, second))
    with _rows.without_autocast(rows):
        return (rows.mT @ columns).argmax(2)
