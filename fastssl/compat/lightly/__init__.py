"""The names of lightly 1.6: ``from fastssl.compat.lightly import NTXentLoss``."""

from fastssl.compat.lightly.heads import (
    DINOProjectionHead,
    MoCoProjectionHead,
    ProjectionHead,
    SimCLRProjectionHead,
)
from fastssl.compat.lightly.losses import DINOLoss, MemoryBankModule, NegativeCosineSimilarity, NTXentLoss
from fastssl.compat.lightly.utils import (
    batch_shuffle,
    batch_unshuffle,
    deactivate_requires_grad,
    get_at_index,
    knn_predict,
    mask_at_index,
    patchify,
    random_token_mask,
    repeat_token,
    set_at_index,
    unpatchify,
    update_momentum,
)

__all__ = [
    "DINOLoss",
    "DINOProjectionHead",
    "MemoryBankModule",
    "MoCoProjectionHead",
    "NTXentLoss",
    "NegativeCosineSimilarity",
    "ProjectionHead",
    "SimCLRProjectionHead",
    "batch_shuffle",
    "batch_unshuffle",
    "deactivate_requires_grad",
    "get_at_index",
    "knn_predict",
    "mask_at_index",
    "patchify",
    "random_token_mask",
    "repeat_token",
    "set_at_index",
    "unpatchify",
    "update_momentum",
]
