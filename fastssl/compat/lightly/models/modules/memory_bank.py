"""lightly's memory bank."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.functional import normalize

from fastssl import ops
from fastssl.compat._processes import everyone
from fastssl.losses import _group
from fastssl.ops import _check

OWNER = "MemoryBankModule"


class MemoryBankModule(_group.Sharing):
    """A bank of earlier features, ``bank`` (K, D), random unit rows at first; of size 0 there is none.

    Args:
        size: (K, D), or 0.
        gather_distributed: the features of all processes are written, in the order of the ranks; the banks of all
            become that of the first process at the first call. One under no_grad that does not write is local.
        feature_dim_first: the bank is returned as (D, K).
    Raises:
        ValueError: for a size of another form.
    """

    bank: Tensor
    bank_ptr: Tensor  # (1) int64, where the next feature goes

    def __init__(
        self, size: int | Sequence[int], gather_distributed: bool = False, feature_dim_first: bool = True
    ) -> None:
        super().__init__()
        self.size = (size,) if isinstance(size, int) else tuple(size)
        if min(self.size, default=-1) < 0:
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
        """``output`` (N, D) and a copy of the bank as it was; then, if ``update``, output goes over its oldest.

        The bank goes where the output is. ``labels`` are not read.

        Raises:
            TypeError, ValueError: for an output that is no (N, D) of floating-point numbers, or not the bank's D; with
                ``gather_distributed`` on every process, naming the ranks, if one has such input or they differ in
                shapes or dtypes.
        """
        if self.size[0] == 0:
            return output, None
        processes = self.processes(OWNER, update)

        def check() -> tuple[Tensor]:
            self.check_fit(OWNER, _check.float_tensor(OWNER, "output", output, "ND"))
            return (output.detach(),)

        (features,) = _group.agreed(OWNER, processes, check, update=update, **self.settings())
        bank = self.beside(features, processes).clone()
        if update:
            self.enqueue(features, processes)
        return output, bank.T if self.feature_dim_first else bank

    def processes(self, owner: str, written: bool) -> dist.ProcessGroup | None:
        """Those that a call is over: under no_grad what writes nothing is this one's alone, an evaluation on one."""
        is_of_all = self.gather_distributed and (written or torch.is_grad_enabled())
        return _group.resolved(owner, everyone() if is_of_all else None)

    def settings(self) -> dict[str, object]:
        """What must be the same on all processes."""
        return dict(bank=self.bank, bank_is_shared=self.is_shared)

    def check_fit(self, owner: str, features: Tensor) -> None:
        """(N, D) must have the bank's D."""
        if features.shape[1] != self.size[1]:
            raise ValueError(f"{owner}: the memory bank has features of {self.size[1]}; got {_check.shape(features)}")

    @torch.no_grad()
    def beside(self, features: Tensor, processes: dist.ProcessGroup | None) -> Tensor:
        """The bank, moved to where the features are: lightly's loops leave the loss on the CPU."""
        if self.bank.device != features.device:
            self.bank, self.bank_ptr = self.bank.to(features.device), self.bank_ptr.to(features.device)
        self.share_once((self.bank, self.bank_ptr), processes)
        return self.bank

    @torch.no_grad()
    def enqueue(self, features: Tensor, processes: dist.ProcessGroup | None) -> None:
        """Writes (N, D) features, and those of the other processes, over the bank's oldest; wraps round its end."""
        ops.enqueue_(self.bank, self.bank_ptr, features if processes is None else _group.gathered(features, processes))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        """lightly saves no bank, and once saved it as (D, K)."""
        for name in ("bank", "bank_ptr"):
            state_dict.setdefault(prefix + name, getattr(self, name))
        bank = state_dict[prefix + "bank"]
        if bank.shape != self.bank.shape and bank.T.shape == self.bank.shape:
            state_dict[prefix + "bank"] = bank.T
        super()._load_from_state_dict(state_dict, prefix, *rest)
