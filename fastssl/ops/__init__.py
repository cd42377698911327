"""Mathematics on tensors: no modules, no process group, no state. Each runs on the fastest backend that serves it."""

from fastssl.ops._backend import backend, explain
from fastssl.ops.distillation_loss import distillation_loss
from fastssl.ops.ema_update import ema_update_
from fastssl.ops.nt_xent import nt_xent
from fastssl.ops.random_masking import random_masking
from fastssl.ops.sinkhorn_knopp import sinkhorn_knopp

__all__ = ["backend", "distillation_loss", "ema_update_", "explain", "nt_xent", "random_masking", "sinkhorn_knopp"]
