"""``python -m benchmarks.crossover``: where our reference backend beats a kernel; writes fastssl/crossover.json.

Measures each op whose file in benchmarks/ops has ``CROSSOVER``, a list of sizes by name, and ``backend(name,
**sizes)``, the work of one backend at one of them: the C++ kernel, or with ``--device cuda`` the GPU's, of a call that
is waited for. ``fastssl.ops._crossover`` reads the file. Plain torch's formula without our dispatch, and without what
the reference's backward recomputes, may be faster than both: that is what the benchmarks' rows tell.
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch
from rich.console import Console

from benchmarks import harness, summary, where
from fastssl import info
from fastssl.files import atomic_write
from fastssl.ops import _crossover

DEVICES = ("cpu", "cuda")


def kernel_of(op: str, device: str) -> str | None:
    """The backend that the automatic choice prefers on a device, or None where the op has no kernel for it."""
    if device == "cpu":
        return "cpu"
    there = info.gpu_kernels().get(op, set())
    return next((name for name in ("cuda", "triton") if name in there), None)


def point(make: Callable[..., harness.Work], kernel: str, sizes: dict[str, int]) -> dict[str, Any]:
    """Milliseconds of the kernel and of the reference at one size, in turns."""
    works = {name: harness.warm(functools.partial(make, name, **sizes)) for name in (kernel, "reference")}
    medians = {name: 1e3 * statistics.median(taken) for name, taken in harness.interleaved(works).items()}
    return {"sizes": sizes, "kernel": round(medians[kernel], 4), "reference": round(medians["reference"], 4)}


def measured(op: str, device: str, console: Console) -> dict[str, Any] | None:
    """The entry of one op, or None where its file lists no sizes or it has no kernel for the device."""
    module, kernel = import_module(f"benchmarks.ops.{op}"), kernel_of(op, device)
    points = []
    for sizes in getattr(module, "CROSSOVER", ()) if kernel else ():
        points.append(point(module.backend, kernel, sizes))
        console.print(f"{op} {points[-1]}")
    if not points:
        return None
    run = harness.circumstances()
    run["processor"] = summary.name_of(run)
    return {**{key: run[key] for key in ("processor", "torch", "commit", "date")}, "points": points}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.crossover", description=__doc__.partition("\n")[0])
    parser.add_argument("--only", choices=harness.OPS, help="one op; the others' entries stay")
    parser.add_argument("--device", choices=DEVICES, default="cpu", help="the other device's entries stay")
    given = parser.parse_args()
    if given.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: this torch can use no GPU")
    where.use(given.device)
    table = json.loads(_crossover.TABLE.read_text()) if _crossover.TABLE.exists() else {}
    told = functools.partial(measured, device=given.device, console=Console(width=160))
    fresh = {op: entry for op in harness.OPS if given.only in (None, op) and (entry := told(op)) is not None}
    table[given.device] = {**table.get(given.device, {}), **fresh}
    with atomic_write(_crossover.TABLE) as path:
        path.write_text(json.dumps(table, indent=1) + "\n")


if __name__ == "__main__":
    main()
