"""lightly's memory bank, which lightly has here too."""

from fastssl.compat.lightly.models.modules.memory_bank import MemoryBankModule

__all__ = ["MemoryBankModule"]
