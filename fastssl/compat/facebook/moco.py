"""facebookresearch/moco, versions 1 and 2: ``from fastssl.compat.facebook.moco import MoCo``."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from fastssl import ops
from fastssl.compat._processes import everyone
from fastssl.compat.lightly import batch_shuffle, batch_unshuffle, deactivate_requires_grad, update_momentum
from fastssl.losses import _group, _rows
from fastssl.ops import _check
from fastssl.ops.queue_info_nce import logits


class MoCo(_group.Sharing):
    """An encoder of queries, its moving average as the encoder of keys, and a queue of keys (arXiv:1911.05722).

    Runs on one process without torch.distributed, and on all of its processes where it is initialised: keys are then
    encoded in shuffled batches and enqueued from all, in the order of the ranks. Under ``eval()`` queue and key encoder
    stay as they are. Parameters and buffers have the names of the original's checkpoints.

    Args:
        base_encoder: called with ``num_classes=dim``, gives an encoder; twice.
        dim: features of a key.
        K: keys in the queue; at least as many as a batch has (of all processes), which need not divide it.
        m: the key encoder's momentum, in [0, 1].
        T: temperature, finite, > 0.
        mlp: MoCo v2's head (2003.04297): the encoder's ``fc``, a linear layer, becomes a network of two.
    Raises:
        TypeError: for an encoder that is made already.
        ValueError: for another momentum or temperature, sizes below 1, or no such ``fc`` where ``mlp`` needs it.
    """

    queue: Tensor  # (dim, K) unit columns, which lie in memory key by key
    queue_ptr: Tensor  # (1) int64, where the next key goes

    def __init__(
        self,
        base_encoder: Callable[..., nn.Module],
        dim: int = 128,
        K: int = 65536,
        m: float = 0.999,
        T: float = 0.07,
        mlp: bool = False,
    ) -> None:
        super().__init__()
        if isinstance(base_encoder, nn.Module):
            raise TypeError(
                "MoCo: base_encoder must make an encoder when called with num_classes, as torchvision.models.resnet50 "
                f"does; got a {type(base_encoder).__name__} that is made already"
            )
        for name, value in (("dim", dim), ("K", K)):
            if _check.whole("MoCo", name, value) < 1:
                raise ValueError(f"MoCo: {name} must be at least 1; got {value}")
        self.K, self.m, self.T = K, _check.momentum("MoCo", m, "momentum m"), _check.positive("MoCo", "T", T)
        self.encoder_q = base_encoder(num_classes=dim)
        self.encoder_k = base_encoder(num_classes=dim)
        if mlp:
            _deepen(self.encoder_q)
            _deepen(self.encoder_k)
        deactivate_requires_grad(self.encoder_k)
        update_momentum(self.encoder_q, self.encoder_k, 0.0)
        self.register_buffer("queue", normalize(torch.randn(dim, K), dim=0).T.contiguous().T)
        self.register_buffer("queue_ptr", torch.zeros(1, dtype=torch.int64))

    def forward(self, im_q: Tensor, im_k: Tensor) -> tuple[Tensor, Tensor]:
        """im_q, im_k: (N, ...), two views of the same images, for the query and the key encoder.

        Returns (N, 1 + K) logits, the key's in column 0, in float32 (float64 for float64 features), and (N) zeros, the
        targets of cross-entropy. ``loss`` gives that without storing the logits.

        Raises:
            TypeError, ValueError: for views that are not as many, none, more than the queue holds (in training), or an
                encoder that gives no (N, dim); over several processes on each, naming the ranks, if one has such input
                or they differ in shapes or dtypes.
        """
        query, key = self._features(im_q, im_k)
        with _rows.without_autocast(query):  # of a copy of the queue, which changes before the backward
            found = logits(query, key, self.queue.T.to(query.dtype, copy=True), self.T)
        self._enqueued(key)
        return found, torch.zeros(len(found), dtype=torch.int64, device=found.device)

    def loss(self, im_q: Tensor, im_k: Tensor) -> Tensor:
        """The mean cross-entropy of ``forward``'s logits, of which none is stored: a scalar in nats."""
        query, key = self._features(im_q, im_k)
        found = ops.queue_info_nce(query, key, self.queue.T, temperature=self.T)
        self._enqueued(key)
        return found

    def _features(self, im_q: Tensor, im_k: Tensor) -> tuple[Tensor, Tensor]:
        """(N, dim) unit queries and keys, in float32 at least; the key encoder has moved before."""
        processes = _group.resolved("MoCo", everyone())
        _group.agreed(
            "MoCo",
            processes,
            lambda: self._checked(im_q, im_k, _group.size(processes)),
            training=self.training,
            T=self.T,
            m=self.m,
            queue=self.queue,
            queue_is_shared=self.is_shared,
        )
        self.share_once((self.queue, self.queue_ptr), processes)
        query = self._unit(self.encoder_q(im_q))
        with torch.no_grad():
            if self.training:
                self._momentum_update_key_encoder()
            key = self._unit(self._encoded(im_k))
        return query, key

    def _checked(self, im_q: Tensor, im_k: Tensor, world: int) -> tuple[Tensor, Tensor]:
        """Images that are as many, and no more than the queue holds."""
        for name, images in (("im_q", im_q), ("im_k", im_k)):
            if _check.tensor("MoCo", name, images).dim() == 0 or images.numel() == 0:
                raise ValueError(f"MoCo: {name} needs at least one image; got {_check.shape(images)}")
        _check.one_device("MoCo", ("im_q", im_q), ("im_k", im_k))
        if len(im_q) != len(im_k):
            raise ValueError(
                f"MoCo: im_q and im_k must be views of the same images; got {_check.shape(im_q)} and "
                f"{_check.shape(im_k)}"
            )
        if self.training and len(im_k) * world > self.K:
            raise ValueError(f"MoCo: the queue has {self.K} keys, and the batch (of all processes) {len(im_k) * world}")
        return im_q, im_k

    def _encoded(self, im_k: Tensor) -> Tensor:
        """The keys; in training over several processes, none's batch norm sees the batch that its query encoder saw."""
        if everyone() is None or not self.training:
            found: Tensor = self.encoder_k(im_k)
            return found
        shuffled, order = batch_shuffle(im_k, distributed=True)
        return batch_unshuffle(self.encoder_k(shuffled), order, distributed=True)

    def _unit(self, features: Tensor) -> Tensor:
        if features.dim() != 2 or features.shape[1] != len(self.queue):
            raise ValueError(
                f"MoCo: the encoder must give features (N, {len(self.queue)}); got {_check.shape(features)}"
            )
        return _rows.unit(_rows.widened(features), False)

    @torch.no_grad()
    def _momentum_update_key_encoder(self) -> None:
        update_momentum(self.encoder_q, self.encoder_k, self.m)

    def _enqueued(self, keys: Tensor) -> None:
        if self.training:
            self._dequeue_and_enqueue(keys)

    @torch.no_grad()
    def _dequeue_and_enqueue(self, keys: Tensor) -> None:
        """Writes (N, dim) keys, and those of the other processes, over the oldest of the queue; wraps round its end."""
        processes = _group.resolved("MoCo", everyone())
        if processes is not None:
            keys = _group.gathered(keys, processes)
        ops.enqueue_(self.queue.T, self.queue_ptr, keys)


def _deepen(encoder: nn.Module) -> None:
    """Puts a hidden layer before the encoder's last one."""
    last = getattr(encoder, "fc", None)
    if not isinstance(last, nn.Linear):
        raise ValueError(
            f"MoCo: mlp=True needs an encoder whose last layer, fc, is linear; got {type(encoder).__name__} with "
            f"{'no fc' if last is None else type(last).__name__}"
        )
    encoder.fc = nn.Sequential(nn.Linear(last.in_features, last.in_features), nn.ReLU(), last)
