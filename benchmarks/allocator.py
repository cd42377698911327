"""What the C library does with freed memory while something is timed.

By default it returns large blocks to the system, and every call takes pages anew, which the system must clear and, in a
virtual machine, may have to fetch from its host: often more time than the op itself, and most of all for the providers
with the most intermediates. Timed is what remains when memory is kept, as the caching allocators do that
PyTorch's tuning guide recommends (jemalloc, TCMalloc).
"""

from __future__ import annotations

import ctypes

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # malloc.h


def keep_freed_memory() -> bool:
    """Blocks of every size stay with this process when freed. False where the C library is not glibc."""
    libc = ctypes.CDLL(None)
    if not (hasattr(libc, "gnu_get_libc_version") and hasattr(libc, "mallopt")):
        return False
    return bool(libc.mallopt(M_MMAP_MAX, 0) and libc.mallopt(M_TRIM_THRESHOLD, -1))


def return_freed_memory() -> None:
    """Gives the system what was kept, before another process needs it."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)
