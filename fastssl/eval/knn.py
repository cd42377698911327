"""Weighted k-nearest-neighbour classification of frozen features (Wu et al., arXiv:1805.01978, section 3.4)."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from fastssl.errors import UserError
from fastssl.eval.scoring import accuracy, check_features, check_labelled
from fastssl.ops import knn_classify


@dataclass(frozen=True)
class KNNConfig:
    """How neighbours vote.

    Attributes:
        k: neighbours that vote. A data set of a few thousand images wants far fewer than ImageNet's customary 200.
        temperature: a neighbour of cosine similarity s votes with weight exp(s / temperature).
    """

    k: int = 20
    temperature: float = 0.1

    def __post_init__(self) -> None:
        if self.k < 1:
            raise UserError(f"k, the number of neighbours, must be at least 1; got {self.k}")
        if not (math.isfinite(self.temperature) and self.temperature > 0):
            raise UserError(f"the temperature of kNN must be a finite number above 0; got {self.temperature}")


def knn_predict(
    bank: Tensor,
    bank_labels: Tensor,
    queries: Tensor,
    *,
    num_classes: int,
    k: int = KNNConfig.k,
    temperature: float = KNNConfig.temperature,
) -> Tensor:
    """The class whose neighbours' weights exp(s / temperature) sum highest, s the cosine similarity.

    Ties: of neighbours equally near at the k-th place the first in the bank votes; of classes with equal sums the
    first wins. The (Q, M) similarities are never stored.

    Args:
        bank: (M, F) floating-point features; need not have unit length.
        bank_labels: (M,) int64 in [0, num_classes).
        queries: (Q, F), device of ``bank``.
        num_classes: number of classes.
        k: neighbours that vote, >= 1; the whole bank votes where it holds fewer.
        temperature: finite, > 0.
    Returns:
        (Q,) int64.
    Raises:
        ValueError, TypeError: naming what was received, if it does not fit.
        UserError: for features that are not finite, and k or temperature out of bounds.
    """
    KNNConfig(k, temperature)
    check_labelled("kNN bank", bank, bank_labels, num_classes)
    check_features("kNN queries", queries)
    if queries.shape[1] != bank.shape[1]:
        raise ValueError(
            f"kNN: bank (M, F) and queries (Q, F) must agree on F; got {tuple(bank.shape)} and {tuple(queries.shape)}"
        )
    scores = knn_classify(
        queries.float(),
        bank.float(),
        bank_labels,
        k=min(k, len(bank)),
        temperature=temperature,
        num_classes=num_classes,
    )
    return scores.argmax(dim=1)


def knn_accuracy(
    bank: Tensor,
    bank_labels: Tensor,
    queries: Tensor,
    query_labels: Tensor,
    *,
    num_classes: int,
    k: int = KNNConfig.k,
    temperature: float = KNNConfig.temperature,
) -> float:
    """Share of ``queries`` that :func:`knn_predict` gives their label, in [0, 1]. query_labels: (Q,) int64."""
    check_labelled("kNN queries", queries, query_labels, num_classes)
    predicted = knn_predict(bank, bank_labels, queries, num_classes=num_classes, k=k, temperature=temperature)
    return accuracy(predicted, query_labels)
