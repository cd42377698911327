"""lightly's NT-Xent."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from fastssl import losses, ops
from fastssl.compat._processes import everyone
from fastssl.compat.lightly.models.modules.memory_bank import MemoryBankModule
from fastssl.losses import _group, _rows
from fastssl.ops import _check

OWNER = "NTXentLoss"


class NTXentLoss(nn.Module):
    """SimCLR's loss of two views; with a memory bank, MoCo's of a view and the keys of earlier batches.

    Args:
        temperature: finite, above 1e-8.
        memory_bank_size: (K, D), or 0 for none.
        gather_distributed: candidates of all processes; with a bank, their keys are all written, in the order of the
            ranks.
    Raises:
        TypeError, ValueError: for another temperature, or a size of another form.
    """

    def __init__(
        self,
        temperature: float = 0.5,
        memory_bank_size: int | Sequence[int] = 0,
        gather_distributed: bool = False,
    ) -> None:
        super().__init__()
        if _check.positive(OWNER, "temperature", temperature) < 1e-8:
            raise ValueError(f"{OWNER}: temperature must be above 1e-8; got {temperature}")
        self.memory_bank = MemoryBankModule(size=memory_bank_size, gather_distributed=gather_distributed)
        self.temperature, self.gather_distributed = temperature, gather_distributed

    def forward(self, out0: Tensor, out1: Tensor) -> Tensor:
        """out0, out1: (N, D) projections, normalised inside. Returns the scalar in float32, or float64.

        The bank is written only if ``out0`` requires a gradient. It goes where the projections are.

        Raises:
            TypeError: for projections that are no floating-point tensors, or of two dtypes.
            ValueError: for other shapes, no sample, two devices, or features other than the bank's; with
                ``gather_distributed`` on every process, naming the ranks, if one has such input or they differ in
                shapes or dtypes.
        """
        if self.memory_bank.size[0] == 0:
            group = everyone() if self.gather_distributed else None
            return losses.nt_xent_loss(out0, out1, temperature=self.temperature, group=group)
        written = bool(getattr(out0, "requires_grad", False))
        processes = self.memory_bank.processes(OWNER, written)

        def check() -> tuple[Tensor, Tensor]:
            query, key = _rows.pair(OWNER, ("out0", out0), ("out1", out1))
            self.memory_bank.check_fit(OWNER, key)
            return query, key

        settings = self.memory_bank.settings()
        pair = _group.agreed(OWNER, processes, check, written=written, temperature=self.temperature, **settings)
        query, key = (_rows.unit(x, False) for x in pair)
        bank = self.memory_bank.beside(key, processes)
        loss = ops.queue_info_nce(query, key, bank, temperature=self.temperature)
        if written:
            self.memory_bank.enqueue(key, processes)
        return loss
