"""A GPU that is none, for ``--dry-run``: torch.cuda's events, streams and graphs on the CPU, at the CPU's pace.

A graph's replay takes the time that its capture took, and calls again what was called there: what it computes is right,
and what is timed here means nothing.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks import where

NAME = "no GPU (dry run)"
_replayed = 0.0  # seconds of replays that were not spent


def _now() -> float:
    return time.perf_counter() + _replayed


class _Event:
    def __init__(self, enable_timing: bool = False) -> None:
        self.at = 0.0

    def record(self, stream: object = None) -> None:
        self.at = _now()

    def elapsed_time(self, end: _Event) -> float:
        return 1e3 * (end.at - self.at)


class _Stream:
    def wait_stream(self, stream: object) -> None:
        """Everything is done already."""

    def synchronize(self) -> None:
        """Likewise."""


class _Graph(TorchDispatchMode):
    """The calls of torch that were made while it was captured, and what they returned."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds = 0.0
        self.calls: list[tuple[Any, tuple[Any, ...], dict[str, Any], Any]] = []

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        results = function(*args, **(kwargs or {}))
        self.calls.append((function, args, kwargs or {}, results))
        return results

    def replay(self) -> None:
        """Into the results that the capture returned, as a GPU's graph writes where it wrote."""
        global _replayed
        _replayed += self.seconds
        start = time.perf_counter()
        with torch.no_grad():
            for function, args, kwargs, results in self.calls:
                for old, new in zip(tree_leaves(results), tree_leaves(function(*args, **kwargs)), strict=True):
                    if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():
                        old.detach().copy_(new)
        _replayed -= time.perf_counter() - start


@contextmanager
def _capture(graph: _Graph) -> Iterator[None]:
    start = time.perf_counter()
    with graph:
        yield
    graph.seconds = time.perf_counter() - start


@contextmanager
def gpu() -> Iterator[None]:
    """Inside, code for a GPU runs on CPU tensors, the benchmarks' with their small sizes."""
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
        "_sleep": lambda cycles: None,
        **dict.fromkeys(("synchronize", "empty_cache", "reset_peak_memory_stats"), lambda *_: None),
        **dict.fromkeys(("memory_allocated", "max_memory_allocated"), lambda *_: 0),
        "set_sync_debug_mode": lambda mode: None,
    }
    with ExitStack() as stack:
        for name, value in pretended.items():
            stack.enter_context(mock.patch.object(torch.cuda, name, value))
        stack.enter_context(mock.patch.object(where, "on_gpu", return_value=True))
        stack.enter_context(where.tried_out())
        yield
