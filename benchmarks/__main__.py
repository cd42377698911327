"""``python -m benchmarks``: measures ops and whole losses; rows go to the machine's folder in benchmarks/results."""

from __future__ import annotations

import argparse
import json
import re
import resource
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from benchmarks import allocator, floors, harness, summary
from fastssl.files import atomic_write

MEMINFO = Path("/proc/meminfo")


def table(rows: list[dict[str, Any]]) -> Table:
    """The rows as a person reads them: ours first in each case, with its ratio to the best rival."""
    drawn = Table(
        "case", "provider", "median ms", "p20-p80", "fastssl is faster by", "% of floor", "peak MB", "error", box=None
    )
    for row in rows:
        is_ours = row["provider"] == harness.OURS
        if is_ours:
            ours = row
        case = f"{row['op']} {row['shape']} {row['dtype']}" if is_ours else ""
        if "failed" in row:
            drawn.add_row(case, row["provider"], "[red]failed[/]", "", escape(row["failed"]))
            continue
        best = ours["times_faster_than"].get(ours["best_rival"], 1.0)
        drawn.add_row(
            case,
            row["provider"],
            f"{row['median']:.2f}",
            f"{row['p20']:.2f}-{row['p80']:.2f}",
            f"{best:.2f}x the best rival" if is_ours else f"{row['median'] / ours['median']:.2f}x",
            f"{row['percent_of_floor']:.0f}" if "percent_of_floor" in row else "",
            f"{row['peak_extra_megabytes']:.1f}" if "peak_extra_megabytes" in row else "",
            f"{row['error_against_float64']:.0e}" if row["error_against_float64"] is not None else "",
        )
    return drawn


def rows_of(op: str, found: floors.Floors | None, console: Console) -> list[dict[str, Any]]:
    """The rows of all cases of one op, telling meanwhile what is being measured."""
    rows = []
    cases = harness.cases(op)
    for i, case in enumerate(cases, 1):
        with console.status("") as status:
            place = f"{case.name} ({i} of {len(cases)})"
            rows += harness.measure(case, found, lambda what, place=place: status.update(f"{place}: {what}"))
    return rows


def measured_floors(threads: int, console: Console) -> tuple[floors.Floors | None, Any]:
    """The floors, and what the results' run says of them; without a compiler, why there are none."""
    try:
        found = floors.measured(threads)
    except floors.NoFloorsError as reason:
        console.print(f"floors not measured, so no row is held against them: {reason}", style="yellow")
        return None, f"not measured: {reason}"
    console.print(
        f"{threads} threads: {found.fma_gflops:.0f} GFLOP/s of multiply-adds, {found.gemm_gflops:.0f} in torch's "
        f"products, {found.bandwidth(2**30):.0f} GB/s, {found.exp_billions_per_second:.1f} billion exponentials/s "
        f"({found.torch_exp_billions_per_second:.1f} by torch)"
    )
    return found, found.report()


def limit_memory() -> None:
    """Lets a rival that wants more memory than there is fail, where the system would end the whole run."""
    available = re.search(r"MemAvailable:\s+(\d+)", MEMINFO.read_text()) if MEMINFO.exists() else None
    if available is not None:
        resource.setrlimit(resource.RLIMIT_DATA, (int(available[1]) * 1024, resource.RLIM_INFINITY))


def main() -> None:
    measured = (*harness.OPS, *harness.DATA, *harness.MODELS, *harness.WHOLE)
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--only", choices=measured, help="one op, way of loading, encoder, or library's losses")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="threads (default: torch's own)")
    parser.add_argument("--out", type=Path, help="folder of the JSON files, one for each (default: this machine's)")
    parser.add_argument("--keep-memory", action="store_true", help="time without what new pages cost")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    run = harness.circumstances()
    if options.keep_memory:
        allocator.keep_freed_memory()
        run["machine"] = f"{run['processor']}, freed memory kept"
    name = summary.name_of(run)
    out = options.out or summary.RESULTS / summary.folder_of(name)
    limit_memory()
    console = Console(width=160)
    found, told = measured_floors(options.threads, console)
    for op in measured if options.only is None else [options.only]:
        rows = rows_of(op, found, console)
        console.print(table(rows))
        report = {"run": {"machine": name, **harness.circumstances(), "floors": told}, "rows": rows}
        with atomic_write(out / f"{op}.json") as path:
            path.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
