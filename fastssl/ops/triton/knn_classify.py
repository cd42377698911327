"""Weighted k-nearest-neighbour votes on a GPU, in Triton (Wu et al., arXiv:1805.01978, section 3.4).

    score_ic = sum_{j in N_i, label_j = c} exp(s_ij / t) / sum_{j in N_i} exp(s_ij / t)

The kernels, and why they are in Triton: _neighbours.py. Reference and tests: fastssl/ops/knn_classify.py,
tests/ops/test_knn_classify.py.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastssl.ops.triton._neighbours import average_of_nearest


def scores(features: Tensor, bank: Tensor, labels: Tensor, k: int, temperature: float, num_classes: int) -> Tensor:
    """features (Q, D), bank (M, D), labels (M,) int64. Returns (Q, num_classes) float32."""
    out = torch.empty(len(features), num_classes, dtype=torch.float32, device=features.device)
    average_of_nearest(features.contiguous(), bank.contiguous(), labels.contiguous(), out, k=k, temperature=temperature)
    return out
