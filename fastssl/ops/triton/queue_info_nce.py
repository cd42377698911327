"""InfoNCE against a queue on a GPU, forward and backward, in Triton (MoCo, arXiv:1911.05722, eq. 1).

    s_i0 = <q_i, key_i> / t, s_ij = <q_i, queue_j> / t, P the softmax of each row      loss = mean_i -log P_i0
    dloss/dq_i = (sum_j P_ij queue_j - (1 - P_i0) key_i) / (t N)       dloss/dkey_i = -(1 - P_i0) q_i / (t N)

The queue has no gradient, so one pass over it gives the log-sum-exps and the query's gradient up to a factor (4 N K D
operations; grid, sums and bytes: _contrast.py), and the backward multiplies. The queue is cut into as many parts as
fill the GPU where N alone does not.
Triton and not CUDA: two matrix products with an online softmax between them.
Reference and tests: fastssl/ops/queue_info_nce.py, tests/ops/test_queue_info_nce.py.
"""

from __future__ import annotations

from torch import Tensor

from fastssl.ops.triton import _launch
from fastssl.ops.triton._combine import combine
from fastssl.ops.triton._contrast import contrast


def forward(
    query: Tensor, key: Tensor, queue: Tensor, temperature: float, for_query: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """query, key (N, D), queue (K, D). Returns the loss (), 1 - P_i0 (N) and dloss/dq (N, D) or (0, D), float32."""
    n, d = query.shape
    losses, share = _launch.floats(n, like=query), _launch.floats(n, like=query)
    direction = _launch.floats(n if for_query else 0, d, like=query)
    query, key, queue = _launch.aligned(query, key, queue)
    contrast(
        query,
        key,
        [(queue, False)],
        losses,
        1.0 / temperature,
        share=share,
        direction=direction if for_query else None,
        factor=1.0 / (temperature * n),
    )
    return losses.mean(), share, direction


def backward(
    grad: Tensor, query: Tensor, share: Tensor, direction: Tensor, temperature: float, for_query: bool, for_key: bool
) -> tuple[Tensor, Tensor]:
    """grad () float32, share and direction of the forward. Returns the gradients of query and key, or (0, D)."""
    query, share, direction = query.contiguous(), share.contiguous(), direction.contiguous()
    n, d = query.shape
    grad_query, grad_key = query.new_empty((n if for_query else 0, d)), query.new_empty((n if for_key else 0, d))
    if for_query:
        combine(direction[None], grad_query, 1.0, scalar=grad)
    if for_key:
        combine(query[None], grad_key, -1.0 / (temperature * n), scalar=grad, weights=share)
    return grad_query, grad_key
