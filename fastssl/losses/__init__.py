"""Losses: thin modules over functions over ops; of MoCo, DINO and DenseCL, which keep a queue or a center, over ops.

All take samples as rows. Those of cosine similarities normalise them inside unless ``normalized=True``, and have their
temperature given. Those with terms across samples take ``group``: computed over the processes of ``torch.distributed``,
their mean over the processes is the loss of one process with the whole batch, and so is its gradient.
"""

from fastssl.losses.clip import ClipLoss, SigLipLoss, clip_loss, siglip_loss
from fastssl.losses.colorization import rebalancing_weights, soft_cross_entropy
from fastssl.losses.cpc import CPCLoss, cpc_loss
from fastssl.losses.dense import DenseContrastive
from fastssl.losses.dino import DINOLoss
from fastssl.losses.info_nce import InfoNCE, info_nce_loss
from fastssl.losses.koleo import KoLeo, koleo_loss
from fastssl.losses.mae import MAELoss, mae_loss, patchify, unpatchify
from fastssl.losses.moco import MoCoLoss
from fastssl.losses.negative_cosine import NegativeCosineSimilarity, negative_cosine_similarity
from fastssl.losses.nt_xent import NTXent, nt_xent_loss
from fastssl.losses.redundancy import BarlowTwins, VICReg, barlow_twins_loss, vicreg_loss
from fastssl.losses.supcon import SupCon, supcon_loss

__all__ = [
    "BarlowTwins",
    "CPCLoss",
    "ClipLoss",
    "DINOLoss",
    "DenseContrastive",
    "InfoNCE",
    "KoLeo",
    "MAELoss",
    "MoCoLoss",
    "NTXent",
    "NegativeCosineSimilarity",
    "SigLipLoss",
    "SupCon",
    "VICReg",
    "barlow_twins_loss",
    "clip_loss",
    "cpc_loss",
    "info_nce_loss",
    "koleo_loss",
    "mae_loss",
    "negative_cosine_similarity",
    "nt_xent_loss",
    "patchify",
    "rebalancing_weights",
    "siglip_loss",
    "soft_cross_entropy",
    "supcon_loss",
    "unpatchify",
    "vicreg_loss",
]
