"""Mathematics on tensors: no modules, no process group, no state. Each runs on the fastest backend that serves it."""

from fastssl.ops._backend import backend, explain
from fastssl.ops.clip_loss import clip_loss
from fastssl.ops.distillation_loss import distillation_loss
from fastssl.ops.ema_update import ema_update_
from fastssl.ops.enqueue import enqueue_
from fastssl.ops.info_nce import info_nce
from fastssl.ops.knn_classify import knn_classify
from fastssl.ops.nt_xent import nt_xent
from fastssl.ops.queue_info_nce import queue_info_nce
from fastssl.ops.random_masking import random_masking
from fastssl.ops.siglip_loss import siglip_loss
from fastssl.ops.sinkhorn_knopp import sinkhorn_knopp
from fastssl.ops.update_center import update_center_

__all__ = [
    "backend",
    "clip_loss",
    "distillation_loss",
    "ema_update_",
    "enqueue_",
    "explain",
    "info_nce",
    "knn_classify",
    "nt_xent",
    "queue_info_nce",
    "random_masking",
    "siglip_loss",
    "sinkhorn_knopp",
    "update_center_",
]
