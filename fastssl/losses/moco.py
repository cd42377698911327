"""MoCo's loss, with its queue of keys."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.functional import normalize

from fastssl import ops
from fastssl.losses import _group, _rows
from fastssl.losses._group import Group
from fastssl.ops import _check


class MoCoLoss(_group.Sharing, _group.OverGroup):
    """InfoNCE of each query's key against a queue of keys of earlier batches (MoCo, arXiv:1911.05722, eq. 1).

    In training the call also writes its keys over the oldest of the queue, after the loss; under ``eval()`` the queue
    stays. Queue and cursor are buffers: saved with the module, and moved with it. Memory grows with N D, not with N K.

    Args:
        temperature: divides the cosine similarities; finite, > 0. The paper uses 0.07, version 2 (2003.04297) 0.2.
        dim: D, features of a key.
        length: K, keys in the queue; at least as many as a batch has (of all processes).
        normalized: True if rows already have unit length; they are normalised inside otherwise.
        group: None, or "world" or a process group: the keys of all its processes are enqueued on each of them, in the
            order of the ranks, so that their queues stay alike. The mean of the losses over the processes is the loss
            of the whole batch.
    Raises:
        ValueError: if the temperature is not finite and positive, or dim or length are below 1.
    """

    queue: Tensor  # (K, D) unit rows; at first random ones, as the paper has them
    cursor: Tensor  # () int64, where the next key goes

    def __init__(
        self, temperature: float, *, dim: int, length: int = 65536, normalized: bool = False, group: Group = None
    ) -> None:
        super().__init__()
        owner = "MoCoLoss"
        self.temperature = _check.positive(owner, "temperature", temperature)
        for name, value in (("dim", dim), ("length", length)):
            if _check.whole(owner, name, value) < 1:
                raise ValueError(f"{owner}: {name} must be at least 1; got {value}")
        self.normalized, self.group = normalized, group
        self.register_buffer("queue", normalize(torch.randn(length, dim), dim=1))
        self.register_buffer("cursor", torch.zeros((), dtype=torch.int64))

    def forward(self, query: Tensor, key: Tensor) -> Tensor:
        """query: (N, D) of the encoder; key: (N, D) of the momentum encoder, which gets no gradient, in the same order.

        Returns the scalar mean loss in nats.

        Raises:
            TypeError: for rows that are no floating-point tensors, or of two dtypes that autocast does not make one.
            ValueError: for other shapes, no sample or feature, two devices, features or a device other than the
                queue's, or, in training, a batch larger than the queue; with a group on every process, naming the
                ranks, if one has such input or they differ in shapes or dtypes.
            RuntimeError: for a group before torch.distributed is initialised, or on a second derivative, which is not
                supported.
        """
        owner, processes = "MoCoLoss", _group.resolved("MoCoLoss", self.group)

        def check() -> tuple[Tensor, Tensor]:
            queries, keys = _rows.pair(owner, ("query", query), ("key", key))
            self._check_fit(owner, queries, processes, self.training)
            return queries, keys.detach()

        query, key = _group.agreed(owner, processes, check, training=self.training, **self._settings())
        query, key = _rows.unit(query, self.normalized), _rows.unit(key, self.normalized)
        loss = ops.queue_info_nce(query, key, self._shared(processes), temperature=self.temperature)
        if self.training:
            self._write(key, processes)
        return loss

    def _settings(self) -> dict[str, object]:
        """What must be the same on all processes."""
        return dict(
            normalized=self.normalized, temperature=self.temperature, queue=self.queue, queue_is_shared=self.is_shared
        )

    def _check_fit(self, owner: str, rows: Tensor, processes: dist.ProcessGroup | None, written: bool) -> None:
        """(N, D) must have the queue's features and device, and be no more than it holds if they are written there."""
        if rows.shape[1] != self.queue.shape[1]:
            raise ValueError(f"{owner}: the queue has keys of {self.queue.shape[1]} features; got {_check.shape(rows)}")
        _check.one_device(owner, ("the queue", self.queue), ("the batch", rows))
        count = len(rows) * _group.size(processes)
        if written and count > len(self.queue):
            raise ValueError(
                f"{owner}: the queue has {len(self.queue)} keys, and the batch (of all processes) {count}: give a "
                "larger length"
            )

    @torch.no_grad()
    def _shared(self, processes: dist.ProcessGroup | None) -> Tensor:
        """The queue; at the first call over a group, that of its first process, for each drew another."""
        self.share_once((self.queue, self.cursor), processes)
        return self.queue

    @torch.no_grad()
    def enqueue(self, keys: Tensor) -> None:
        """Writes (N, D) unit keys, and those of the other processes of the group, over the oldest of the queue.

        Raises:
            TypeError, ValueError: for keys that the queue cannot take, over a group as ``forward``.
        """
        owner, processes = type(self).__name__, _group.resolved(type(self).__name__, self.group)

        def check() -> tuple[Tensor]:
            self._check_fit(owner, _check.float_tensor(owner, "keys", keys, "ND"), processes, True)
            return (keys,)

        self._write(*_group.agreed(owner, processes, check, **self._settings()), processes)

    @torch.no_grad()
    def _write(self, keys: Tensor, processes: dist.ProcessGroup | None) -> None:
        """(N, D) unit keys, and those of the other processes, over the oldest of the queue."""
        ops.enqueue_(self.queue, self.cursor, keys if processes is None else _group.gathered(keys, processes))

    def extra_repr(self) -> str:
        length, dim = self.queue.shape
        return (
            f"temperature={self.temperature}, dim={dim}, length={length}, normalized={self.normalized}"
            f"{self.told_group()}"
        )
