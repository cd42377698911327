"""A GPU that is none, for ``--dry-run``: torch.cuda's events, streams and graphs on the CPU, at the CPU's pace.

A graph's replay does nothing but take the time that its capture took; so what is timed here means nothing.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch

from benchmarks import where

NAME = "no GPU (dry run)"
_replayed = 0.0  # seconds of replays that were not spent


def _now() -> float:
    return time.perf_counter() + _replayed


class _Event:
    def __init__(self, enable_timing: bool) -> None:
        self.at = 0.0

    def record(self) -> None:
        self.at = _now()

    def elapsed_time(self, end: _Event) -> float:
        return 1e3 * (end.at - self.at)


class _Stream:
    def wait_stream(self, stream: object) -> None:
        """Everything is done already."""


class _Graph:
    def __init__(self) -> None:
        self.seconds = 0.0

    def replay(self) -> None:
        global _replayed
        _replayed += self.seconds


@contextmanager
def _capture(graph: _Graph) -> Iterator[None]:
    start = time.perf_counter()
    yield
    graph.seconds = time.perf_counter() - start


@contextmanager
def gpu() -> Iterator[None]:
    """Inside, the benchmarks' code for a GPU runs on CPU tensors."""
    pretended: dict[str, Any] = {
        "Event": _Event,
        "Stream": _Stream,
        "CUDAGraph": _Graph,
        "graph": _capture,
        "stream": lambda stream: nullcontext(),
        "current_stream": lambda *_: _Stream(),
        "current_device": lambda: 0,
        "get_device_name": lambda *_: NAME,
        "get_device_properties": lambda *_: SimpleNamespace(L2_cache_size=2**20),
        **dict.fromkeys(("synchronize", "empty_cache", "reset_peak_memory_stats"), lambda *_: None),
        **dict.fromkeys(("memory_allocated", "max_memory_allocated"), lambda *_: 0),
        "set_sync_debug_mode": lambda mode: None,
    }
    with ExitStack() as stack:
        for name, value in pretended.items():
            stack.enter_context(mock.patch.object(torch.cuda, name, value))
        stack.enter_context(mock.patch.object(where, "on_gpu", return_value=True))
        stack.enter_context(mock.patch.object(where, "sizes", lambda *, cpu, gpu: cpu))
        yield
