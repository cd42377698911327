"""Mathematics on tensors: no modules, no process group, no state. Each chooses a backend that serves the call."""

from fastssl.ops._backend import backend, explain
from fastssl.ops._color import gamut_bins
from fastssl.ops._views import PackedImages, ViewParams
from fastssl.ops.augment import augment
from fastssl.ops.block_masking import block_masking
from fastssl.ops.clip_loss import clip_loss
from fastssl.ops.decode_ab import decode_ab
from fastssl.ops.distillation_loss import distillation_loss
from fastssl.ops.ema_update import ema_update_
from fastssl.ops.encode_ab import encode_ab
from fastssl.ops.enqueue import enqueue_
from fastssl.ops.info_nce import info_nce
from fastssl.ops.knn_classify import knn_classify
from fastssl.ops.lab_to_rgb import lab_to_rgb
from fastssl.ops.nt_xent import nt_xent
from fastssl.ops.propagate_labels import propagate_labels
from fastssl.ops.queue_info_nce import queue_info_nce
from fastssl.ops.random_masking import random_masking
from fastssl.ops.restore_patches import restore_patches
from fastssl.ops.rgb_to_lab import rgb_to_lab
from fastssl.ops.siglip_loss import siglip_loss
from fastssl.ops.sinkhorn_knopp import sinkhorn_knopp
from fastssl.ops.take_patches import take_patches
from fastssl.ops.tiles import tiles
from fastssl.ops.update_center import update_center_

__all__ = [
    "PackedImages",
    "ViewParams",
    "augment",
    "backend",
    "block_masking",
    "clip_loss",
    "decode_ab",
    "distillation_loss",
    "ema_update_",
    "encode_ab",
    "enqueue_",
    "explain",
    "gamut_bins",
    "info_nce",
    "knn_classify",
    "lab_to_rgb",
    "nt_xent",
    "propagate_labels",
    "queue_info_nce",
    "random_masking",
    "restore_patches",
    "rgb_to_lab",
    "siglip_loss",
    "sinkhorn_knopp",
    "take_patches",
    "tiles",
    "update_center_",
]
