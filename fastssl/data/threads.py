"""Work on threads ahead of the training step, which they give way to."""

from __future__ import annotations

import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import islice
from typing import TypeVar

from torch import Tensor

# What the threads give way by to those of the training step, in the system's units of niceness.
_NICENESS = 10

T = TypeVar("T")


def made_ahead(
    pool: ThreadPoolExecutor, ahead: int, make: Callable[[int, Tensor], T], steps: Iterator[tuple[int, Tensor]]
) -> Iterator[T]:
    """What ``make`` makes of each of ``steps``: ``ahead`` are in the making, or made, before one is asked for."""
    waiting = deque(pool.submit(make, *step) for step in islice(steps, ahead))
    while waiting:
        made = waiting.popleft().result()
        waiting.extend(pool.submit(make, *step) for step in islice(steps, 1))
        yield made


def give_way() -> None:
    """Lowers the priority of this thread, where threads have one of their own."""
    if sys.platform == "linux":
        with suppress(OSError):
            niceness = os.getpriority(os.PRIO_PROCESS, 0) + _NICENESS
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), min(19, niceness))
