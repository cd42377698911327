"""lightly.loss, with a file for each of lightly's."""

from fastssl.compat.lightly.loss.dino_loss import DINOLoss
from fastssl.compat.lightly.loss.negative_cosine_similarity import NegativeCosineSimilarity
from fastssl.compat.lightly.loss.ntx_ent_loss import NTXentLoss

__all__ = ["DINOLoss", "NTXentLoss", "NegativeCosineSimilarity"]
