"""Small valid calls of every op: for test_gpu.py, and for compute-sanitizer as a program.

    python tests/ops/small_calls.py cuda OP...      prints a line of JSON for each op when its calls are done

On ``cpu`` the reference serves them, which tries the program.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from fastssl import ops
from fastssl.ops._backend import ops as registered

try:
    from fuzz_calls import CALLS, Arguments
    from fuzz_helpers import Drawn, copied, mapped, run
    from hypothesis import HealthCheck, Phase, given, settings
    from hypothesis import strategies as st
except ModuleNotFoundError as error:
    if __name__ != "__main__":
        raise
    CALLS, DRAWN = {}, f"none: {error}"
else:
    DRAWN = "by the fuzz"

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def stem(name: str) -> str:
    """The name of an op's files."""
    return name.removesuffix("_backward").rstrip("_")


def gpu_backends(name: str) -> list[str]:
    """Of an op in ``torch.ops.fastssl``."""
    return [backend for backend in registered()[name].implementations if backend in ("cuda", "triton")]


def drawn(name: str, dtype: torch.dtype, count: int) -> list[Arguments]:
    """The same arguments at each run, tensors on the CPU, most of them of ``dtype``."""

    class OfType(Drawn):
        def dtype(self) -> torch.dtype:
            return dtype

    found: list[Arguments] = []

    @settings(
        max_examples=count,
        phases=[Phase.generate],
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.data())
    def draw(data: st.DataObject) -> None:
        found.append(CALLS[name].arguments(OfType(data.draw, wild=False)))

    draw()
    return found


def asking(name: str, arguments: Arguments) -> list[str]:
    """The arguments that can ask for a gradient."""
    return [key for key in CALLS[name].differentiable if isinstance(arguments.get(key), Tensor)]


def served(name: str, arguments: Arguments, backend: str, device: torch.device) -> dict[str, Tensor] | None:
    """Results and gradients of a call on a device, or None where the backend cannot serve it."""
    there = {key: mapped(value, lambda x: copied(x, device)) for key, value in arguments.items()}
    try:
        with ops.backend(backend):
            return run(name, there, CALLS[name].written, asking(name, arguments))
    except RuntimeError as error:
        if "cannot serve this call" not in str(error):
            raise
        return None


def examples(op: str, device: torch.device) -> Iterator[Any]:
    """Each registered op of these files by its own example, on every backend."""
    for name, each in registered().items():
        if stem(name) == op:
            for backend in gpu_backends(name) if device.type == "cuda" else ["reference"]:
                yield each.call(*each.example(device), backend)


def main(device: torch.device, wanted: list[str]) -> None:
    for op in wanted:
        calls = sum(1 for _ in examples(op, device))
        for name in (name for name in CALLS if stem(name) == op):
            for backend in gpu_backends(name) if device.type == "cuda" else ["reference"]:
                for dtype in DTYPES:
                    results = [served(name, arguments, backend, device) for arguments in drawn(name, dtype, 3)]
                    calls += sum(result is not None for result in results)
        if device.type == "cuda":
            torch.cuda.synchronize()
        print(json.dumps({"item": op, "result": {"calls": calls, "drawn": DRAWN}}), flush=True)


if __name__ == "__main__":
    main(torch.device(sys.argv[1]), sys.argv[2:])
