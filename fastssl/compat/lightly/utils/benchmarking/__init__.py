"""lightly's kNN classifier."""

from __future__ import annotations

from torch import Tensor

from fastssl import ops


def knn_predict(
    feature: Tensor,
    feature_bank: Tensor,
    feature_labels: Tensor,
    num_classes: int,
    knn_k: int = 200,
    knn_t: float = 0.1,
) -> Tensor:
    """(B, num_classes) classes by descending score, for features (B, D) and a bank (D, N) of labels (N)."""
    votes = ops.knn_classify(
        feature, feature_bank.T, feature_labels, k=knn_k, temperature=knn_t, num_classes=num_classes
    )
    return votes.argsort(dim=-1, descending=True)
