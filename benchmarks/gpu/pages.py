"""A check's results as the repository would have them, in the check's own folder: results/, and pages/ that tell them.

They are what ``--adopt`` and then ``python -m benchmarks.publish`` would write, to be read before.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from benchmarks import summary
from benchmarks.gpu.ledger import Ledger
from fastssl.files import atomic_write

DRY = "**A dry run on a CPU: no GPU kernel ran, and what is timed here means nothing.**"


def reports(record: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """(op, its results file) of the cases that were measured, of the record of the benchmarks."""
    rows: dict[str, list[dict[str, Any]]] = {}
    for result in record["parts"].values():
        rows.setdefault(result.get("op", ""), []).extend(result.get("rows", []))
    return [(op, {"run": record["run"], "rows": rows[op]}) for op in rows if rows[op]]


def write(out: Path, record: dict[str, Any], found: Ledger, dry: bool) -> str:
    """Into ``out``, in place of an earlier run's; returns what was written, or why not."""
    results, pages = out / "results", out / "pages"
    for folder in (results, pages):
        shutil.rmtree(folder, ignore_errors=True)
    measured = reports(record)
    for op, report in measured:
        with atomic_write(results / summary.folder_of(record["run"]["machine"]) / f"{op}.json") as path:
            path.write_text(json.dumps(report, indent=1) + "\n")
    try:
        from benchmarks import publish  # it draws, and a machine with a GPU may have no matplotlib
    except ModuleNotFoundError as missing:
        return f"not made: {missing.name} is not installed"
    machines = summary.machines(results) if measured else []
    note = DRY if dry else ""
    texts = {pages / "performance.md": publish.performance(machines, found, note)}
    for machine in machines:
        page = publish.machine_page(machine, pages / "performance", note)
        texts[pages / "performance" / f"{machine.folder}.md"] = page
    for target, text in texts.items():
        with atomic_write(target) as path:
            path.write_text(text)
    return f"{len(measured)} ops and libraries in {pages / 'performance.md'}"
