"""``python -m benchmarks.freed_memory``: steps of training with freed memory kept, as the command does, and returned.

The cells of the table of scores on random pixels, each time in a process of its own, by turns: what the allocator has
once been told holds for the whole process.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from benchmarks import allocator
from benchmarks.harness import circumstances_of_training
from benchmarks.markdown import circumstances as in_words
from benchmarks.markdown import table_of
from benchmarks.scores.cells import Cell, cells
from benchmarks.summary import RESULTS
from fastssl.data.images import ImageSet, Splits
from fastssl.files import atomic_write
from fastssl.train.apart import Apart
from fastssl.train.folder import RunFolder
from fastssl.train.loop import Progress, pretrain
from fastssl.train.memory import PeakMemory

RESULT = RESULTS / "freed_memory.json"
NAMES = ("simclr", "rotation", "jigsaw", "mae")
STEPS, FIRST, TURNS = 24, 8, 3  # of the first steps' time a part is compiling

READ = """\
glibc returns large blocks of memory to the system when they are freed, and each step of training takes pages anew.
The `fastssl` command lets the process keep them; in a loop of your own `fastssl.allocator.keep_freed_memory()` does.
`{command}` times steps of the [recipes for CIFAR-10](scores.md) both ways, on random pixels, {turns} processes each by
turns: the median step, and the most memory that a process had at once.
"""


def steps(cell: Cell) -> dict[str, float]:
    """What steps of a cell take, in milliseconds, and this process at its highest, in MB."""
    config = replace(cell.config("noise", 0), epochs=1)
    size = (STEPS * config.batch_size, 3, config.image_size, config.image_size)
    pixels = torch.randint(256, size, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    splits = Splits(ImageSet(pixels, None, (), tuple(map(str, range(len(pixels)))), "noise"), None)
    ends: list[float] = []

    def watch(_progress: Progress) -> None:
        ends.append(time.perf_counter())

    peak = PeakMemory()
    with tempfile.TemporaryDirectory() as folder:
        pretrain(config, splits, RunFolder(Path(folder) / "run"), watch=watch)
    taken = [1000 * (end - start) for start, end in zip(ends[FIRST - 1 :], ends[FIRST:], strict=False)]
    return {"milliseconds": statistics.median(taken), "megabytes": peak.megabytes()}


def in_a_process(name: str, *, kept: bool) -> dict[str, float]:
    process = Apart(_serve, name, kept)
    try:
        found: dict[str, float] = process.answer()
    finally:
        process.kill()
    return found


def _serve(link: Connection, name: str, kept: bool) -> None:
    if kept:
        allocator.keep_freed_memory()
    link.send(steps(next(cell for cell in cells(ablations=False) if cell.name == name)))


def row_of(name: str) -> dict[str, Any]:
    """Medians over the turns, with freed memory kept and returned."""
    found: dict[str, list[dict[str, float]]] = {"kept": [], "returned": []}
    for _ in range(TURNS):
        for way, runs in found.items():
            runs.append(in_a_process(name, kept=way == "kept"))
    medians = {
        way: {what: round(statistics.median(run[what] for run in runs), 1) for what in runs[0]}
        for way, runs in found.items()
    }
    return {"name": name, **medians, "all": found}


def section(path: Path = RESULT) -> list[str]:
    """For the page of results, once it is measured."""
    if not path.exists():
        return []
    report = json.loads(path.read_text())
    rows = []
    for row in report["rows"]:
        kept, returned = row["kept"], row["returned"]
        faster = f"{returned['milliseconds'] / kept['milliseconds']:.2f}"
        times = [f"{way['milliseconds']:.0f}" for way in (kept, returned)]
        rows.append([f"`{row['name']}`", *times, faster, *(f"{way['megabytes']:.0f}" for way in (kept, returned))])
    head = ["recipe", "ms, kept", "ms, returned", "times faster", "MB, kept", "MB, returned"]
    return [
        "## Training on a CPU: freed memory\n",
        READ.format(command=report["command"], turns=TURNS),
        table_of(head, 1, rows),
        "",
        in_words(report["run"]),
        "",
    ]


def main() -> None:
    argparse.ArgumentParser(prog="python -m benchmarks.freed_memory", description=__doc__).parse_args()
    rows = []
    for name in NAMES:
        rows.append(row_of(name))
        print(json.dumps(rows[-1]), flush=True)
    run = circumstances_of_training()
    report = {"command": "python -m benchmarks.freed_memory", "run": run, "rows": rows}
    with atomic_write(RESULT) as path:
        path.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
