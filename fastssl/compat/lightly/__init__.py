"""The names of lightly 1.6: all of them here, and each in the module where lightly has it.

So either ``from fastssl.compat.lightly import NTXentLoss``, or ``fastssl.compat.`` before the name of lightly's module.
"""

from fastssl.compat.lightly.loss import DINOLoss, NegativeCosineSimilarity, NTXentLoss
from fastssl.compat.lightly.models.modules.heads import (
    DINOProjectionHead,
    MoCoProjectionHead,
    ProjectionHead,
    SimCLRProjectionHead,
)
from fastssl.compat.lightly.models.modules.memory_bank import MemoryBankModule
from fastssl.compat.lightly.models.utils import (
    batch_shuffle,
    batch_unshuffle,
    deactivate_requires_grad,
    get_at_index,
    mask_at_index,
    patchify,
    random_token_mask,
    repeat_token,
    set_at_index,
    unpatchify,
    update_momentum,
)
from fastssl.compat.lightly.utils.benchmarking import knn_predict

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
