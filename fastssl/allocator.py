"""What the C library does with freed memory.

glibc returns large blocks to the system, so that every step of a training takes its pages anew, and the system clears
them: a fifth of a step of SimCLR with a small encoder on two CPU cores. PyTorch's tuning guide recommends another
allocator for that reason; glibc can be told to keep what is freed.
"""

from __future__ import annotations

import ctypes
import sys

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # malloc.h


def keep_freed_memory() -> bool:
    """Blocks of every size stay with this process when freed, from now on: its memory is then that of its peak.

    Returns:
        Whether they do: only glibc can be told so.
    """
    if not sys.platform.startswith("linux"):
        return False
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "gnu_get_libc_version"):
        return False
    return bool(libc.mallopt(M_MMAP_MAX, 0) and libc.mallopt(M_TRIM_THRESHOLD, -1))
