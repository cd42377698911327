"""Mathematics on tensors: no modules, no process group, no state. Each runs on the fastest backend that serves it."""

from fastssl.ops._backend import backend, explain
from fastssl.ops.ema_update import ema_update_
from fastssl.ops.nt_xent import nt_xent
from fastssl.ops.random_masking import random_masking
from fastssl.ops.restore_patches import restore_patches
from fastssl.ops.take_patches import take_patches

__all__ = [
    "backend",
    "ema_update_",
    "explain",
    "nt_xent",
    "random_masking",
    "restore_patches",
    "take_patches",
]
