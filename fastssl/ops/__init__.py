"""Mathematics on tensors: no modules, no process group, no state. Each runs on the fastest backend that serves it."""

from fastssl.ops._backend import backend, explain
from fastssl.ops._color import gamut_bins
from fastssl.ops.decode_ab import decode_ab
from fastssl.ops.ema_update import ema_update_
from fastssl.ops.encode_ab import encode_ab
from fastssl.ops.knn_classify import knn_classify
from fastssl.ops.lab_to_rgb import lab_to_rgb
from fastssl.ops.nt_xent import nt_xent
from fastssl.ops.propagate_labels import propagate_labels
from fastssl.ops.random_masking import random_masking
from fastssl.ops.rgb_to_lab import rgb_to_lab

__all__ = [
    "backend",
    "decode_ab",
    "ema_update_",
    "encode_ab",
    "explain",
    "gamut_bins",
    "knn_classify",
    "lab_to_rgb",
    "nt_xent",
    "propagate_labels",
    "random_masking",
    "rgb_to_lab",
]
