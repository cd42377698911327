"""A network of a batch that it does not fit with: in chunks, whose activations are computed twice and kept by none.

Gradient caching (Gao et al., arXiv:2101.06983, section 3): features of all chunks come first, without what their
gradient needs; from the gradient of the loss by them, each chunk computes its own in a second forward pass.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


def in_chunks(network: nn.Module, images: Tensor, size: int | None) -> Tensor:
    """``network(images)``, of at most ``size`` images at a time, whose gradient needs the activations of one chunk.

    Values and gradients are those of the whole batch, if ``network`` treats each image by itself, as a Vision
    Transformer does. Batch normalisation in training takes the statistics of each chunk, as on so many devices. What
    the network draws at random is drawn alike in both passes, and its buffers are written in the first one only.

    Args:
        network: from (N, ...) to (N, D).
        images: (N, ...) floating-point.
        size: at least 1; chunks differ by one image at most. None, or no fewer than there are images: all at once.
    Returns:
        (N, D) of the network's dtype.
    """
    if size is None or size >= len(images):
        whole: Tensor = network(images)
        return whole
    chunks = images.tensor_split(-(-len(images) // size))
    if not torch.is_grad_enabled():
        return torch.cat([network(chunk) for chunk in chunks])
    contexts = partial(_forwards, network)
    return torch.cat([checkpoint(network, chunk, use_reentrant=False, context_fn=contexts) for chunk in chunks])


def _forwards(network: nn.Module) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """Around the first forward pass of a chunk, and around the second."""
    return nullcontext(), _on_copied_buffers(network)


@contextmanager
def _on_copied_buffers(network: nn.Module) -> Iterator[None]:
    """What ``network`` writes into its buffers goes into copies of them, which are dropped."""
    own = [(part, name, buffer) for part in network.modules() for name, buffer in part.named_buffers(recurse=False)]
    for part, name, buffer in own:
        setattr(part, name, buffer.clone())
    try:
        yield
    finally:
        for part, name, buffer in own:
            setattr(part, name, buffer)
