"""The section of docs/performance.md on the choice of a backend, of what ``python -m benchmarks.crossover`` wrote."""

from __future__ import annotations

from benchmarks.markdown import table_of
from fastssl.ops._crossover import Crossover

READ = """\
A call is served by the kernel of its device unless plain torch was faster there at the nearest measured size;
`fastssl.ops.explain` says which, and why. `python -m benchmarks.crossover`, with `--device cuda` for a GPU, writes the
table that the choice reads. Ops without an entry below always take the kernel. A forced backend is always honoured.
"""


def section(tables: dict[str, dict[str, Crossover]]) -> str:
    """Where the automatic choice takes plain torch, and how much was measured to say so; by device."""
    parts = ["## Which backend is chosen\n", READ]
    for kernel, table in (("C++", tables["cpu"]), ("GPU", tables["cuda"])):
        for op, measured in table.items():
            won = [point for point in measured.points if point.reference_wins]
            told = "plain torch is faster at these" if won else f"the {kernel} kernel is faster at all of them"
            parts.append(f"`{op}`: {len(measured.points)} sizes {measured.where}; {told}.\n")
            if won:
                rows = [[*point.sizes.values(), f"{point.kernel:.2f}", f"{point.reference:.2f}"] for point in won]
                parts.append(table_of([*won[0].sizes, f"{kernel} kernel, ms", "plain torch, ms"], 0, rows) + "\n")
    if not tables["cuda"]:
        parts.append("For a GPU this table was not measured yet: its kernels serve every call that they can.\n")
    return "\n".join(parts)
