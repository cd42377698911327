"""The GPU's tests without a GPU: ``pytest -m gpu --pretend-gpu``, as the dry run of ``python -m benchmarks.gpu`` does.

What it tries are the tests and the Python around the kernels; no kernel runs.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from unittest import mock

from benchmarks.gpu import pretend
from fastssl.ops._backend import ops as registered


@contextmanager
def gpu_on_cpu() -> Iterator[None]:
    """Inside, torch.cuda is a pretended one, and in place of each GPU kernel its op's formula takes CPU tensors."""
    with ExitStack() as stack:
        stack.enter_context(pretend.gpu())
        for op in registered().values():
            formula = op.implementations["reference"]
            there = {name: formula if name in ("cuda", "triton") else each for name, each in op.implementations.items()}
            stack.enter_context(mock.patch.object(op, "implementations", there))
        yield
