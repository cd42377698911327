"""pytorch-metric-learning: ``from fastssl.compat.pml import NTXentLoss``; ``info_nce`` is info-nce-pytorch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fastssl import ops
from fastssl.compat import _labels, info_nce
from fastssl.losses import _rows
from fastssl.ops import _check

__all__ = ["NTXentLoss", "info_nce"]

OWNER = "NTXentLoss"


class NTXentLoss(nn.Module):
    """The mean over positive pairs of the cross-entropy of the positive against the anchor's negatives.

    For rows a and p of one label and the rows n of all others, ``-log(exp(s_ap) / (exp(s_ap) + sum_n exp(s_an)))``,
    ``s`` the cosine similarity over the temperature: another positive of a is no candidate. Without a pair, or without
    negatives, the loss is 0.

    Where each label has two rows, as two views of an image have, this is SimCLR's loss, and its memory grows with N D;
    otherwise with N M, the similarities.

    Args:
        temperature: finite, > 0.
        kwargs: none: the similarity is the cosine, and the reducer the mean over positive pairs, as by default there.
    Raises:
        TypeError: for a ``distance``, ``reducer`` or other argument.
        ValueError: for a temperature that is not finite and positive.
    """

    def __init__(self, temperature: float = 0.07, **kwargs: Any) -> None:
        super().__init__()
        given = [name for name, value in kwargs.items() if value is not None]
        if given:
            raise TypeError(
                f"{OWNER}: takes a temperature alone, with cosine similarity and the mean over positive pairs; "
                f"got {', '.join(given)}"
            )
        self.temperature = _check.positive(OWNER, "temperature", temperature)

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor | None = None,
        indices_tuple: Sequence[Tensor] | None = None,
        ref_emb: Tensor | None = None,
        ref_labels: Tensor | None = None,
    ) -> Tensor:
        """The scalar loss in nats, in float32 (float64 for float64 inputs).

        Args:
            embeddings: (N, D), normalised inside.
            labels: (N) integers; not needed with ``indices_tuple``.
            indices_tuple: anchors, positives and negatives (triplets), or anchors, positives, anchors and negatives,
                each of them indices into the rows: these pairs alone count, each as often as it is given.
            ref_emb: (M, D), rows to compare with in place of the embeddings themselves. Row i of both is then a pair
                as any other, and none is left out (but where embeddings and labels are given once more).
            ref_labels: (M) integers, of ``ref_emb``.
        Raises:
            TypeError, ValueError: for other shapes or dtypes, or labels that are needed and not given.
        """
        itself = ref_emb is None or (ref_emb is embeddings and ref_labels is labels)
        rows, others = _unit_rows(embeddings, None if itself else ref_emb)
        if indices_tuple is not None:
            positives, negatives = _counted(indices_tuple, len(rows), len(others), rows)
        else:
            labels, ref_labels = _both_labels(labels, ref_labels, rows, None if itself else others)
            pairs = _labels.pairs(labels) if itself else None
            if pairs is not None:
                return ops.nt_xent(rows[pairs[0]], rows[pairs[1]], temperature=self.temperature)
            same = labels[:, None] == ref_labels
            positives, negatives = same.to(rows.dtype), (~same).to(rows.dtype)
            if itself:
                positives.fill_diagonal_(0)
        return _loss(rows, others, positives, negatives, self.temperature)

    def extra_repr(self) -> str:
        return f"temperature={self.temperature}"


def _loss(rows: Tensor, others: Tensor, positives: Tensor, negatives: Tensor, temperature: float) -> Tensor:
    """positives, negatives: (N, M), how often each pair counts."""
    with _rows.without_autocast(rows):
        products = rows @ others.T / temperature
    counted = (products + negatives.clamp_min(1).log()).masked_fill(negatives == 0, float("-inf"))
    losses = _rows.log_one_plus_exp(counted.logsumexp(1, keepdim=True) - products)  # 0 without negatives
    return (losses * positives).sum() / positives.sum().clamp_min(1)


def _unit_rows(embeddings: Tensor, ref_emb: Tensor | None) -> tuple[Tensor, Tensor]:
    """(N, D) and (M, D) unit rows, in float32 at least."""
    _check.float_tensor(OWNER, "embeddings", embeddings, "ND")
    if embeddings.numel() == 0:
        raise ValueError(f"{OWNER}: needs at least one row and one feature; got {_check.shape(embeddings)}")
    rows = _rows.unit(_rows.widened(embeddings), False)
    if ref_emb is None:
        return rows, rows
    _check.float_tensor(OWNER, "ref_emb", ref_emb, "MD")
    _check.alike(OWNER, ("embeddings", embeddings), ("ref_emb", ref_emb))
    if ref_emb.shape[1] != embeddings.shape[1]:
        raise ValueError(
            f"{OWNER}: embeddings (N, D) and ref_emb (M, D) must agree on D; "
            f"got {_check.shape(embeddings)} and {_check.shape(ref_emb)}"
        )
    return rows, _rows.unit(_rows.widened(ref_emb), False)


def _both_labels(
    labels: Tensor | None, ref_labels: Tensor | None, rows: Tensor, others: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The labels of the rows, and of the others: the same if there are none."""
    if labels is None:
        raise ValueError(f"{OWNER}: needs labels or an indices_tuple; got neither")
    labels = _labels.checked(OWNER, "labels", labels, rows)
    if others is None:
        return labels, labels
    if ref_labels is None:
        raise ValueError(f"{OWNER}: ref_emb needs ref_labels; got none")
    return labels, _labels.checked(OWNER, "ref_labels", ref_labels, others)


def _counted(indices: Sequence[Tensor], n: int, m: int, rows: Tensor) -> tuple[Tensor, Tensor]:
    """How often each of the (N, M) pairs is given as a positive, and as a negative one."""
    if len(indices) not in (3, 4):
        raise ValueError(
            f"{OWNER}: indices_tuple must be (anchors, positives, negatives) or (anchors, positives, anchors, "
            f"negatives); got {len(indices)} tensors"
        )
    anchors, positives, *rest = indices
    pairs = (("positives", anchors, positives), ("negatives", rest[0] if len(rest) == 2 else anchors, rest[-1]))
    return tuple(_count(name, a, b, n, m, rows) for name, a, b in pairs)  # type: ignore[return-value]


def _count(name: str, anchors: Tensor, others: Tensor, n: int, m: int, rows: Tensor) -> Tensor:
    for what, index, count in ((f"anchors of {name}", anchors, n), (name, others, m)):
        if _check.tensor(OWNER, what, index).dtype != torch.int64 or index.shape != (anchors.numel(),):
            raise ValueError(
                f"{OWNER}: {what} must be int64, as many as anchors ({anchors.numel()}); "
                f"got {index.dtype} {_check.shape(index)}"
            )
        if index.numel():
            _check.in_range(OWNER, what, index, count)
    where = (anchors.to(rows.device), others.to(rows.device))
    return rows.new_zeros(n, m).index_put_(where, rows.new_ones(()), accumulate=True)
