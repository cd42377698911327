"""``python -m benchmarks.crossover``: where plain torch is faster than a C++ kernel; writes fastssl/crossover.json.

Measures each op whose file in benchmarks/ops has ``CROSSOVER``, a list of sizes by name, and ``backend(name,
**sizes)``, the work of one backend at one of them. ``fastssl.ops._crossover`` reads the file.
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
from collections.abc import Callable
from importlib import import_module
from typing import Any

from rich.console import Console

from benchmarks import harness
from fastssl.files import atomic_write
from fastssl.ops import _crossover


def point(make: Callable[..., harness.Work], sizes: dict[str, int]) -> dict[str, Any]:
    """Milliseconds of the kernel and of the reference at one size, in turns."""
    works = {name: harness.warm(functools.partial(make, name, **sizes)) for name in ("cpu", "reference")}
    medians = {name: 1e3 * statistics.median(taken) for name, taken in harness.interleaved(works).items()}
    return {"sizes": sizes, "kernel": round(medians["cpu"], 4), "reference": round(medians["reference"], 4)}


def measured(op: str, console: Console) -> dict[str, Any] | None:
    """The entry of one op, or None where its file lists no sizes."""
    module = import_module(f"benchmarks.ops.{op}")
    points = []
    for sizes in getattr(module, "CROSSOVER", ()):
        points.append(point(module.backend, sizes))
        console.print(f"{op} {points[-1]}")
    if not points:
        return None
    run = harness.circumstances()
    return {**{key: run[key] for key in ("processor", "torch", "commit", "date")}, "points": points}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.crossover", description=__doc__.partition("\n")[0])
    parser.add_argument("--only", choices=harness.OPS, help="one op; the others' entries stay")
    only = parser.parse_args().only
    table = json.loads(_crossover.TABLE.read_text()) if _crossover.TABLE.exists() else {}
    told = functools.partial(measured, console=Console(width=160))
    fresh = {op: entry for op in harness.OPS if only in (None, op) and (entry := told(op)) is not None}
    with atomic_write(_crossover.TABLE) as path:
        path.write_text(json.dumps({**table, **fresh}, indent=1) + "\n")


if __name__ == "__main__":
    main()
