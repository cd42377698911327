"""``python -m benchmarks.gpu.measure CASE...``: measures cases and prints a line of JSON for each when it is done.

With ``--dry-run`` small cases on a pretended GPU, which compute on this machine's processor; with ``--compile`` their
compiled providers are called once, and nothing is measured.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from typing import Any
from unittest import mock

import torch

from benchmarks import harness, where
from benchmarks.gpu import floors, pretend, timing


@contextmanager
def pretended() -> Iterator[None]:
    """Inside, cases are small, run on the CPU, and are called no more often than their code needs to be tried."""
    few = mock.patch.multiple(timing, MOST_COPIES=2, GRAPH_SECONDS=0.0, SAMPLES=3)
    with pretend.gpu(), few, mock.patch.object(harness, "SAMPLES", 3):
        yield


def told(rows: list[dict[str, Any]], dry: bool) -> list[dict[str, Any]]:
    """The rows; of a dry run they say what their times are not."""
    if dry:
        for row in rows:
            if "timed_by" in row:
                row["timed_by"] = f"pretended {row['timed_by']}, on a CPU"
    return rows


def compile_all(names: list[str]) -> None:
    """Calls what torch compiles once; what it raises is told when it is measured."""
    cases = {case.name: case for case in harness.cases()}
    for name in names:
        where.forget_compiled()
        for provider, make in cases[name].providers.items():
            if "torch.compile" in provider or provider == harness.OURS:
                with suppress(Exception):
                    make()()
            torch.cuda.empty_cache()


def main(names: list[str], dry: bool) -> None:
    with pretended() if dry else nullcontext():
        found = floors.measured(64, (0.25, 1)) if dry else floors.measured()
        run = {**harness.circumstances(), "floors": found.report()}
        cases = {case.name: case for case in harness.cases()}
        for name in names:
            case = cases[name]
            rows = timing.measure(case, found, lambda what, name=name: print(f"{name}: {what}", flush=True))
            result = {"op": case.op, "run": run, "rows": told(rows, dry)}
            print(json.dumps({"item": name, "result": result}), flush=True)


if __name__ == "__main__":
    options = {word for word in sys.argv[1:] if word.startswith("--")}
    wanted = [word for word in sys.argv[1:] if word not in options]
    if "--max-autotune" in options:
        where.search()
    if "--dry-run" not in options:
        where.use("cuda")
    if "--compile" in options:
        compile_all(wanted)
    else:
        main(wanted, "--dry-run" in options)
