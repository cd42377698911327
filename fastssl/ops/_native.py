"""The native modules, where they were built, and how tensors are handed to them."""

from __future__ import annotations

import importlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch  # before the native modules: its OpenMP runtime is then the only one in the process
from torch import Tensor

# The codes of csrc/cpu/dtype.h.
DTYPES = {torch.float32: 1, torch.bfloat16: 2, torch.float16: 3, torch.float64: 4}
NO_TENSOR, BYTES = 0, 5


# modules of functions on raw addresses, or None where they were not built
cpu: Any
cuda: Any


def _load(name: str) -> tuple[Any, str | None]:
    try:
        return importlib.import_module(f"fastssl.{name}"), None
    except ImportError as error:
        built = not isinstance(error, ModuleNotFoundError)
        return None, f"fastssl.{name} does not load: {error}" if built else f"fastssl.{name} was not built"


cpu, CPU_MISSING = _load("_cpu")
cuda, CUDA_MISSING = _load("_cuda")


_calling = threading.local()


def threads() -> int:
    """How many threads a CPU kernel may use: what torch itself uses."""
    return 1 if getattr(_calling, "alone", False) else torch.get_num_threads()


@contextmanager
def on_one_thread() -> Iterator[None]:
    """Within it, CPU kernels that this thread calls use no other: for who has threads of their own share the work."""
    before, _calling.alone = getattr(_calling, "alone", False), True
    try:
        yield
    finally:
        _calling.alone = before


def stream(tensor: Tensor) -> int:
    """The handle of the CUDA stream that work on ``tensor`` belongs to."""
    return int(torch.cuda.current_stream(tensor.device).cuda_stream)


def scratch(near: Tensor, size: int) -> Tensor:
    """Memory of ``size`` bytes on the tensor's device, for what a GPU kernel keeps between its launches."""
    return near.new_empty(size, dtype=torch.uint8)


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """What sums over tensors of ``dtype`` are kept in."""
    return torch.float64 if dtype == torch.float64 else torch.float32
