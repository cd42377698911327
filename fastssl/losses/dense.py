"""DenseCL's loss: each place of one view against the place of the other that looks most like it."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.functional import normalize

from fastssl import ops
from fastssl.losses import _group, _rows
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

        Raises:
            TypeError: for grids that are no floating-point tensors, or of two dtypes that autocast does not make one.
            ValueError: for other shapes, no sample or feature, two devices, features or a device other than the
                queue's, or, in training, more images than the queue has keys; with a group on every process, naming the
                ranks, if one has such input or they differ in shapes or dtypes.
            RuntimeError: for a group before torch.distributed is initialised, or on a second derivative, which is not
                supported.
        """
        processes = _group.resolved("DenseContrastive", self.group)
        query, key, query_features, key_features = _group.agreed(
            "DenseContrastive",
            processes,
            lambda: self._checked(query, key, query_features, key_features, processes),
            training=self.training,
            **self._settings(),
        )
        places, keys = (_rows.unit(x.flatten(2).mT, self.normalized) for x in (query, key))
        matched = keys.gather(1, _matches(query_features, key_features)[..., None].expand_as(keys))
        loss = ops.queue_info_nce(
            places.flatten(0, 1), matched.flatten(0, 1), self._shared(processes), temperature=self.temperature
        )
        if self.training:
            self._write(normalize(_rows.widened(key.flatten(2)).mean(2), dim=1), processes)
        return loss

    def _checked(
        self,
        query: Tensor,
        key: Tensor,
        query_features: Tensor,
        key_features: Tensor,
        processes: dist.ProcessGroup | None,
    ) -> tuple[Tensor, ...]:
        """All as autocast casts them; no gradient but to the query."""
        owner = "DenseContrastive"
        grids = {"query": query, "key": key, "query_features": query_features, "key_features": key_features}
        for name, grid in grids.items():
            _rows.not_empty(owner, _check.float_tensor(owner, name, grid, "NDHW"))
            if (len(grid), grid.shape[2:]) != (len(query), query.shape[2:]):
                raise ValueError(
                    f"{owner}: {name} must have the batch and places of query {_check.shape(query)}; "
                    f"got {_check.shape(grid)}"
                )
            _check.one_device(owner, ("query", query), (name, grid))
        if query.shape[1] != self.queue.shape[1] or key.shape[1] != query.shape[1]:
            raise ValueError(
                f"{owner}: the queue has keys of {self.queue.shape[1]} features; got query {_check.shape(query)} and "
                f"key {_check.shape(key)}"
            )
        self._check_fit(owner, key[:, :, 0, 0], processes, self.training)
        cast = {name: _check.as_autocast_casts(grid) for name, grid in grids.items()}
        for name, other in (("query", "key"), ("query_features", "key_features")):
            _check.alike(owner, (name, cast[name]), (other, cast[other]))
        return cast["query"], *(cast[name].detach() for name in ("key", "query_features", "key_features"))


@torch.no_grad()
def _matches(first: Tensor, second: Tensor) -> Tensor:
    """For each place of the first (N, C, H, W), that of the second with the largest cosine: (N, H W)."""
    rows, columns = (normalize(_rows.widened(x.flatten(2)), dim=1) for x in (first, second))
    with _rows.without_autocast(rows):
        return (rows.mT @ columns).argmax(2)
