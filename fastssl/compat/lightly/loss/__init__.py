"""lightly's losses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, normalize

from fastssl import losses, ops
from fastssl.compat._processes import everyone
from fastssl.losses import _group, _rows
from fastssl.losses.dino import Centered, move_center


class MemoryBankModule(nn.Module):
    """A bank of earlier features, ``bank`` (K, D), random unit rows at first; of size 0 there is none.

    Args:
        size: (K, D), or 0.
        gather_distributed: the features of all processes are written.
        feature_dim_first: the bank is returned as (D, K).
    """

    bank: Tensor
    bank_ptr: Tensor  # (1) int64, where the next feature goes

    def __init__(
        self, size: int | Sequence[int], gather_distributed: bool = False, feature_dim_first: bool = True
    ) -> None:
        super().__init__()
        self.size = (size,) if isinstance(size, int) else tuple(size)
        if min(self.size) < 0:
            raise ValueError(f"Illegal memory bank size {size}, all entries must be non-negative.")
        if self.size != (0,) and len(self.size) != 2:
            raise ValueError(f"Illegal memory bank size {size}: give (num_features, dim), or 0 for no bank.")
        self.gather_distributed, self.feature_dim_first = gather_distributed, feature_dim_first
        bank = torch.randn(self.size) if len(self.size) == 2 else torch.empty(0)
        self.register_buffer("bank", normalize(bank, dim=-1) if bank.numel() else bank)
        self.register_buffer("bank_ptr", torch.zeros(1, dtype=torch.int64))

    def forward(
        self, output: Tensor, labels: Tensor | None = None, update: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """``output`` (N, D) and a copy of the bank as it was; then, if ``update``, output goes over its oldest."""
        if self.size[0] == 0:
            return output, None
        bank = self.bank.clone()
        if update:
            self.write(output)
        return output, bank.T if self.feature_dim_first else bank

    @torch.no_grad()
    def write(self, features: Tensor) -> None:
        """Writes (N, D) features, gathered if asked, over the oldest of the bank; wraps round its end."""
        processes = _group.resolved("MemoryBankModule", everyone() if self.gather_distributed else None)
        (features,) = _group.agreed("MemoryBankModule", processes, lambda: (features,))
        if processes is not None:
            features = _group.gathered(features, processes)
        ops.enqueue_(self.bank, self.bank_ptr, features)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        """lightly saves no bank, and once saved it as (D, K)."""
        for name in ("bank", "bank_ptr"):
            state_dict.setdefault(prefix + name, getattr(self, name))
        bank = state_dict[prefix + "bank"]
        if bank.shape != self.bank.shape and bank.T.shape == self.bank.shape:
            state_dict[prefix + "bank"] = bank.T
        super()._load_from_state_dict(state_dict, prefix, *rest)


class NTXentLoss(nn.Module):
    """SimCLR's loss of two views; with a memory bank, MoCo's of a view and the keys of earlier batches.

    Args:
        temperature: above 0.
        memory_bank_size: (K, D), or 0 for none.
        gather_distributed: candidates of all processes; with a bank, their keys are all written.
    """

    def __init__(
        self,
        temperature: float = 0.5,
        memory_bank_size: int | Sequence[int] = 0,
        gather_distributed: bool = False,
    ) -> None:
        super().__init__()
        if temperature < 1e-8:
            raise ValueError(f"Illegal temperature: {temperature} is not above 1e-8")
        self.memory_bank = MemoryBankModule(size=memory_bank_size, gather_distributed=gather_distributed)
        self.temperature, self.gather_distributed = temperature, gather_distributed

    def forward(self, out0: Tensor, out1: Tensor) -> Tensor:
        """out0, out1: (N, D) projections, normalised inside.

        The bank is written only if ``out0`` requires a gradient.
        """
        if self.memory_bank.size[0] == 0:
            group = everyone() if self.gather_distributed else None
            return losses.nt_xent_loss(out0, out1, temperature=self.temperature, group=group)
        query, key = _rows.unit(out0, False), _rows.unit(out1, False)
        loss = ops.queue_info_nce(query, key, self.memory_bank.bank, temperature=self.temperature)
        if out0.requires_grad:
            self.memory_bank.write(key)
        return loss


class DINOLoss(Centered):
    """DINO's loss, teacher first, with a center (1, 1, K) that follows the teacher's mean in training.

    Args:
        output_dim: K.
        warmup_teacher_temp, warmup_teacher_temp_epochs: where the teacher's temperature begins, and for how many
            epochs it goes to ``teacher_temp``, if the call tells the epoch.
        center_mode: "mean".
    """

    center: Tensor

    def __init__(
        self,
        output_dim: int = 65536,
        warmup_teacher_temp: float = 0.04,
        teacher_temp: float = 0.04,
        warmup_teacher_temp_epochs: int = 30,
        student_temp: float = 0.1,
        center_momentum: float = 0.9,
        center_mode: str = "mean",
    ) -> None:
        super().__init__()
        if center_mode != "mean":
            raise ValueError(f"Unknown mode '{center_mode}'. Valid modes are ['mean'].")
        self.teacher_temp, self.student_temp, self.center_momentum = teacher_temp, student_temp, center_momentum
        self.warmup_teacher_temp_epochs = warmup_teacher_temp_epochs
        self.teacher_temp_schedule = torch.linspace(warmup_teacher_temp, teacher_temp, warmup_teacher_temp_epochs)
        self.register_buffer("center", torch.zeros(1, 1, output_dim))

    def forward(
        self,
        teacher_out: list[Tensor],
        student_out: list[Tensor],
        teacher_temp: float | None = None,
        epoch: int | None = None,
    ) -> Tensor:
        """Lists of (N, K), a view each: the views that the teacher sees first among the student's."""
        if teacher_temp is None:
            warm = epoch is None or epoch >= self.warmup_teacher_temp_epochs
            teacher_temp = self.teacher_temp if warm else float(self.teacher_temp_schedule[epoch])
        teacher = torch.stack(teacher_out).detach()
        loss = ops.distillation_loss(
            torch.stack(student_out),
            teacher,
            student_temp=self.student_temp,
            teacher_temp=teacher_temp,
            center=self.center.flatten(),
        )
        if self.training:
            self.update_center(teacher)
        return loss

    @torch.no_grad()
    def update_center(self, teacher_out: Tensor) -> None:
        """Moves the center towards the mean of (T, N, K), and of those of the other processes."""
        processes = _group.resolved("DINOLoss", everyone())
        move_center(self.center.view(-1), teacher_out, self.center_momentum, processes)


class NegativeCosineSimilarity(nn.Module):
    """Minus the mean cosine along ``dim``."""

    def __init__(self, dim: int = 1, eps: float = 1e-8) -> None:
        super().__init__()
        self.dim, self.eps = dim, eps

    def forward(self, x0: Tensor, x1: Tensor) -> Tensor:
        """x0, x1: of one shape."""
        return -cosine_similarity(x0, x1, self.dim, self.eps).mean()
