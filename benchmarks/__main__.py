"""``python -m benchmarks``: measures every op and writes the rows to benchmarks/results/."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks import harness
from fastssl.files import atomic_write

RESULTS = Path(__file__).parent / "results"


def table(rows: list[dict[str, Any]]) -> Table:
    """The rows as a person reads them: ours first in each case, with its ratio to the best rival."""
    drawn = Table("case", "provider", "median ms", "p20-p80", "fastssl is faster by", "peak MB", "error", box=None)
    for row in rows:
        is_ours = row["provider"] == harness.OURS
        if is_ours:
            ours = row
        case = f"{row['op']} {row['shape']} {row['dtype']}" if is_ours else ""
        if "failed" in row:
            drawn.add_row(case, row["provider"], "[red]failed[/]", "", row["failed"])
            continue
        best = ours["times_faster_than"].get(ours["best_rival"], 1.0)
        drawn.add_row(
            case,
            row["provider"],
            f"{row['median']:.2f}",
            f"{row['p20']:.2f}-{row['p80']:.2f}",
            f"{best:.2f}x the best rival" if is_ours else f"{row['median'] / ours['median']:.2f}x",
            f"{row['peak_extra_megabytes']:.1f}" if "peak_extra_megabytes" in row else "",
            f"{row['error_against_float64']:.0e}" if row["error_against_float64"] is not None else "",
        )
    return drawn


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--only", choices=harness.OPS, help="one op")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="threads (default: torch's own)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the JSON files, one an op")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    console = Console(width=160)
    gemm = harness.product_rate()
    console.print(f"float32 matrix product of torch: {gemm:.0f} GFLOP/s on {options.threads} threads")
    for op in harness.OPS if options.only is None else [options.only]:
        rows = []
        for case in harness.cases(op):
            with console.status(case.name):
                rows += harness.measure(case)
        console.print(table(rows))
        report = {"run": {**harness.circumstances(), "torch_product_gflops": round(gemm, 1)}, "rows": rows}
        with atomic_write(options.out / f"{op}.json") as path:
            path.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
