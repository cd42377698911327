"""Providers that work on ahead, each in a process of its own, which stands still while others have their turn.

In one process their threads would go on making batches in the others' time: DALI's did, and took half of it.
"""

from __future__ import annotations

from collections.abc import Callable
from multiprocessing.connection import Connection

import torch

from benchmarks import allocator, harness, where
from fastssl.train.apart import Apart


class Elsewhere:
    """A work that is made, warmed up and called in a process of its own.

    Attributes:
        backend: that of ours that serves it there.
    """

    def __init__(self, make: Callable[[], harness.Work]) -> None:
        self._process = Apart(_serve, make, torch.get_num_threads(), where.device().type, allocator.is_kept())
        self.backend: str = self._process.answer()

    def __call__(self) -> int:
        """What the work returns."""
        return int(self._process.ask("call"))


def _serve(link: Connection, make: Callable[[], harness.Work], threads: int, device: str, keep_memory: bool) -> None:
    torch.set_num_threads(threads)
    where.use(device)
    if keep_memory:
        allocator.keep_freed_memory()
    try:
        work = harness.warm(make)
        link.send(harness.backend(work))
        while link.recv():
            link.send(work())
    except Exception as reason:  # whatever a rival raises belongs in its row
        link.send(reason)
