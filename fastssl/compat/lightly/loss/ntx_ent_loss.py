"""lightly's module of the same name; the code stands in the package."""

from fastssl.compat.lightly.loss import MemoryBankModule, NTXentLoss

__all__ = ["MemoryBankModule", "NTXentLoss"]
