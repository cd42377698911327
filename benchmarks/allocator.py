"""What the C library does with freed memory while something is timed.

glibc returns large blocks to the system, so that each call takes its pages anew: the system must clear them and, in a
virtual machine, may have to fetch them from its host. Users of an op in a loop of their own pay that too, so it is
timed, though on some machines it is more than the op itself and never twice the same. With ``--keep-memory`` freed
memory stays with the process, as it does in the ``fastssl`` command and with the allocators that PyTorch's tuning guide
recommends (jemalloc, TCMalloc): what is left is the work. A run says which it was, and the two never stand in one
table.
"""

from __future__ import annotations

import ctypes

from fastssl import allocator

_kept = False


def keep_freed_memory() -> None:
    """Blocks of every size stay with this process when freed.

    Raises:
        RuntimeError: where the C library is not glibc, which alone can be told so.
    """
    global _kept
    if not allocator.keep_freed_memory():
        raise RuntimeError("--keep-memory needs glibc: preload jemalloc or TCMalloc instead")
    _kept = True


def is_kept() -> bool:
    """Whether `keep_freed_memory` was called."""
    return _kept


def return_freed_memory() -> None:
    """Gives the system what was kept, before another process needs it."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)
