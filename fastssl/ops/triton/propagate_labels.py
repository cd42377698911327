"""Label propagation over a context of frames on a GPU, in Triton (arXiv:2104.14294, appendix; arXiv:2006.14613).

    out_i = sum_{j in N_i} w_j label_j / sum_{j in N_i} w_j, w_j = exp(s_ij / t)

N_i is sought within ``radius`` rows and columns of i. Features and labels are first transposed, so that those of a
pixel are contiguous. The kernels, and why they are in Triton: _neighbours.py. Reference and tests:
fastssl/ops/propagate_labels.py, tests/ops/test_propagate_labels.py.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastssl.ops.triton._neighbours import Window, average_of_nearest


def propagate(
    target: Tensor, context: Tensor, labels: Tensor, radius: int | None, k: int, temperature: float
) -> Tensor:
    """target (D, H, W), context (T, D, H, W), labels (T, C, H, W). Returns (C, H, W) float32."""
    height, width = target.shape[1:]
    out = torch.empty(labels.shape[1], height, width, dtype=torch.float32, device=target.device)
    window = None  # the whole frame
    if radius is not None and radius < max(height, width) - 1:
        window = Window(height, width, radius)
    average_of_nearest(
        target.flatten(1).T.contiguous(),
        context.movedim(1, -1).flatten(0, 2).contiguous(),
        labels.to(torch.float32).movedim(1, -1).flatten(0, 2).contiguous(),
        out.flatten(1).T,
        k=k,
        temperature=temperature,
        window=window,
    )
    return out
