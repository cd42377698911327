"""What a process takes of memory at most, as Linux counts it."""

from __future__ import annotations

import re
from pathlib import Path

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class PeakMemory:
    """The high-water mark of this process from now on, beyond what it holds now."""

    def __init__(self) -> None:
        """Lowers the mark to what is resident.

        Raises:
            OSError: where the system keeps no such mark, as macOS and Windows do not.
        """
        _CLEAR.write_text("5")
        self._before = _kilobytes("VmRSS")

    def megabytes(self) -> float:
        """MiB above the start."""
        return (_kilobytes("VmHWM") - self._before) / 1024


def _kilobytes(name: str) -> int:
    found = re.search(rf"{name}:\s+(\d+)", _STATUS.read_text())
    assert found is not None
    return int(found[1])
