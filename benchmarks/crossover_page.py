"""The section of docs/performance.md on the choice of a backend, of what ``python -m benchmarks.crossover`` wrote."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks import age
from benchmarks.markdown import table_of
from benchmarks.summary import Machine
from benchmarks.tables import loss_of, milliseconds
from fastssl.ops import _crossover
from fastssl.ops._crossover import CLEARLY

READ = f"""\
A call is served by the kernel of its device, unless that was more than {CLEARLY} times slower at the nearest measured
size than `reference`, our own backend in plain torch, and plain torch's memory would be small.
`fastssl.ops.explain` says which serves a call, and why. Ops without an entry below always take the kernel, and a forced
backend is always honoured. `python -m benchmarks.crossover`, with `--device cuda` for a GPU, writes the table that the
choice reads: one for every processor, measured on the machine named below alone, and one for every GPU.
"""
READ_PLAIN = """\
`reference` goes through our checks and dispatch, and a loss's backward recomputes in it what autograd would have kept.
So where it is slower than a kernel, the formula itself may still be faster than both, above all on small inputs, where
a call costs more than what it computes. Of all sizes in the ops' tables above, one of plain torch's own forms, called
as it is and not compiled, was faster than what served our call at these:
"""


def section(tables: dict[str, dict[str, Any]], machines: Sequence[Machine]) -> str:
    """Where the automatic choice takes the reference, how much was measured to say so, and what it cannot see."""
    parts = ["## Which backend is chosen\n", READ]
    for kernel, device, backends in (("C++", "cpu", ("cpu",)), ("GPU", "cuda", age.GPU)):
        for op, entry in tables.get(device, {}).items():
            measured = _crossover.read(entry)
            older = age.told(age.changed(op, entry["commit"], backends))
            won = [point for point in measured.points if point.reference_wins]
            told = "at these the choice is `reference`" if won else f"the choice is the {kernel} kernel at all of them"
            parts.append(f"`{op}`: {len(measured.points)} sizes {measured.where}, commit {entry['commit']}; {told}.")
            parts[-1] += f" This is {older}.\n" if older else "\n"
            if won:
                rows = [[*point.sizes.values(), f"{point.kernel:.2f}", f"{point.reference:.2f}"] for point in won]
                parts.append(table_of([*won[0].sizes, f"{kernel} kernel, ms", "`reference`, ms"], 0, rows) + "\n")
    if not tables.get("cuda"):
        parts.append("For a GPU this table was not measured yet: its kernels serve every call that they can.\n")
    return "\n".join([*parts, READ_PLAIN, plain_wins(machines), ""])


def plain_wins(machines: Sequence[Machine]) -> str:
    """The rows of the ops at which plain torch's own form is faster than ours."""
    rows = []
    for machine in machines:
        for case in (case for report in machine.reports if not report.is_whole for case in report.cases):
            if case.plain is not None and case.against(case.plain)[1] == "slower":
                times = [milliseconds(row["median"]) for row in (case.ours, case.plain)]
                rows.append([loss_of(case), machine.name, case.plain["provider"], *times])
    return table_of(["op and shape", "measured on", "plain torch", "ours, ms", "plain torch, ms"], 3, rows)
