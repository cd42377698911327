"""``python -m benchmarks.scores``: trains and scores methods, a cell each; what is done is not done again.

It ends after --minutes with what is then done and the rest ready to go on: exit code 0 if all that was asked for is
done, 1 if there is more to do by the same command.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.harness import circumstances_of_training
from benchmarks.scores import table
from benchmarks.scores.cells import CIFAR10, IMAGES, Cell, cells, larger_cells
from benchmarks.scores.train import Clock, Data, row_of, settings_of
from fastssl.allocator import keep_freed_memory
from fastssl.errors import UserError, unknown
from fastssl.files import atomic_write


def chosen(names: str | None, *, ablations: bool = False, images: str = CIFAR10) -> list[Cell]:
    """The cells of the methods, or of the names of cells, that are given; all without any.

    Raises:
        UserError: offering the nearest, for a name that there is not; or if ablations are asked for of larger images.
    """
    if ablations and images != CIFAR10:
        raise UserError(f"ablations are of {CIFAR10} alone: leave out --ablation, or --images {images}")
    there = list(cells(ablations=ablations) if images == CIFAR10 else larger_cells())
    if names is None:
        return there
    wanted = names.split(",")
    known = {name for cell in there for name in (cell.name, cell.of or cell.method)}
    for name in wanted:
        if name not in known:
            raise unknown("cell", name, known)
    return [cell for cell in there if cell.name in wanted or (cell.of or cell.method) in wanted]


def read(path: Path, settings: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of a cell, if they are of the same settings."""
    if not path.exists():
        return []
    found = json.loads(path.read_text())
    rows: list[dict[str, Any]] = found["rows"] if found["settings"] == json.loads(json.dumps(settings)) else []
    return rows


def write(path: Path, cell: Cell, settings: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    circumstances = circumstances_of_training()
    told = {"method": cell.method, "of": cell.of, "what": cell.what, "settings": settings, "run": circumstances}
    with atomic_write(path) as partial:
        partial.write_text(json.dumps({**told, "rows": sorted(rows, key=lambda row: row["seed"])}, indent=1) + "\n")


def run(wanted: list[Cell], seeds: int, data: Data, work: Path, out: Path, clock: Clock) -> bool:
    """Does what is missing, seed by seed, as far as the time allows. Returns whether all is done."""
    for seed in range(seeds):
        for cell in wanted:
            path, settings = out / f"{cell.name}.json", settings_of(cell, data)
            rows = read(path, settings)
            if any(row["seed"] == seed for row in rows):
                continue
            if clock.over:
                return False
            print(f"{cell.name}, seed {seed}", flush=True)
            try:
                rows.append(row_of(cell, seed, data, work, clock))
            except KeyboardInterrupt as stop:
                print(f"{cell.name}, seed {seed}: {stop or 'stopped'}", flush=True)
                return False
            write(path, cell, settings, rows)
            print(f"{cell.name}, seed {seed}: {table.in_one_line(rows[-1])}", flush=True)
    return True


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scores", description=__doc__)
    parser.add_argument("--data", required=True, help="folder of images: train/ and test/ (or val/), a folder a class")
    parser.add_argument("--images", choices=IMAGES, default=CIFAR10, help="which data set that is (default: cifar10)")
    parser.add_argument("--methods", help="names of methods or cells, with commas between (default: all)")
    parser.add_argument("--ablation", action="store_true", help="the methods' ablations in their place")
    parser.add_argument("--list", action="store_true", help="name the cells, and do nothing")
    parser.add_argument("--seeds", type=int, default=3, help="the seeds 0, 1, 2 ... of each cell")
    parser.add_argument("--minutes", type=float, default=10.0, help="after which to stop")
    parser.add_argument("--out", type=Path, default=table.RESULTS, help="folder of the JSON files")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "fastssl-scores")
    options = parser.parse_args()
    keep_freed_memory()  # as the command that trains does
    try:
        wanted = chosen(options.methods, ablations=options.ablation, images=options.images)
        if options.list:
            print("\n".join(cell.name for cell in wanted))
            return 0
        data = Data(options.data, options.work)
        done = run(wanted, options.seeds, data, options.work, options.out, Clock(options.minutes))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print("all done" if done else "more to do: the same command goes on")
    return 0 if done else 1


if __name__ == "__main__":
    sys.exit(main())
