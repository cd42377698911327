"""What processes take of memory at most, as Linux counts it."""

from __future__ import annotations

import re
from pathlib import Path


class PeakMemory:
    """The high-water mark of a process from now on, beyond what it holds now.

    Args:
        pid: of the process, one of this user's; by default this one.

    Raises:
        OSError: where the system keeps no such mark, as macOS and Windows do not.
    """

    def __init__(self, pid: int | None = None) -> None:
        self._process = Path("/proc", "self" if pid is None else str(pid))
        (self._process / "clear_refs").write_text("5")  # lowers the mark to what is resident
        self._before = self._kilobytes("VmRSS")

    def megabytes(self) -> float:
        """MiB above the start."""
        return (self._kilobytes("VmHWM") - self._before) / 1024

    def _kilobytes(self, name: str) -> int:
        found = re.search(rf"{name}:\s+(\d+)", (self._process / "status").read_text())
        assert found is not None
        return int(found[1])
