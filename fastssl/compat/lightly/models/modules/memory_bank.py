"""lightly's memory bank, where lightly has it; its code stands beside the loss that uses it."""

from fastssl.compat.lightly.loss import MemoryBankModule

__all__ = ["MemoryBankModule"]
