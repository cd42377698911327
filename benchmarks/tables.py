"""The tables of the pages that are made of the results: what each cell of a case says."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.markdown import table_of
from benchmarks.summary import PEAK, Measured, Report, Row


def megabytes(row: Row | None) -> str:
    peak = None if row is None else row.get(PEAK)
    return "-" if peak is None else f"{peak:,.0f}" if peak >= 10 else f"{peak:.1f}"


def our_megabytes(case: Measured) -> str:
    return f"**{megabytes(case.ours)}**" if case.needs_more else megabytes(case.ours)


def least_megabytes(case: Measured) -> str:
    """Of the rival that needs least memory, where that is not the best one."""
    least = case.leanest
    return "" if least is None or least is case.best else f"{megabytes(least)} ({least['provider']})"


def times_faster(case: Measured, rival: Row | None) -> str:
    number, verdict = case.against(rival)
    ratio = f"{number:.2f}"
    return {"faster": ratio, "slower": f"**{ratio}**", "alike": f"{ratio} (alike)", "alone": "-"}[verdict]


def summary_cells(case: Measured) -> list[str]:
    ours, best = case.ours, case.best
    memory = [f"{our_megabytes(case)} / {megabytes(best)}", least_megabytes(case)] if PEAK in ours else ["", ""]
    floor = f"{ours['percent_of_floor']:.0f} %" if "percent_of_floor" in ours else ""
    rival = ["-", "-"] if best is None else [best["provider"], milliseconds(best["median"])]
    where = loss_of(case)
    if ours.get("backend", "cpu") != "cpu":
        where += f" ({ours['backend']})"
    return [where, rival[0], milliseconds(ours["median"]), rival[1], times_faster(case, best), floor, *memory]


def lost(cases: Sequence[Measured]) -> str:
    """The cases where a rival is faster, just as fast, or needs less memory, by name: what bold alone might hide."""
    told = {
        "Slower than the best rival": [of_best(case) for case in cases if case.verdict == "slower"],
        "No different from the best rival": [of_best(case) for case in cases if case.verdict == "alike"],
        "More memory than the rival that needs least": [of_leanest(case) for case in cases if case.needs_more],
    }
    if past := [each for case in cases for each in past_floor(case)]:
        told["Past the floor, within its noise"] = past
    return "".join(f"- {said}: {'; '.join(named) if named else 'none of these'}.\n" for said, named in told.items())


def of_best(case: Measured) -> str:
    assert case.best is not None
    return f"{case.title} ({case.best['provider']})"


def of_leanest(case: Measured) -> str:
    assert case.leanest is not None
    return f"{case.title} ({case.ours[PEAK]:,} MB against {case.leanest[PEAK]:,}, {case.leanest['provider']})"


def past_floor(case: Measured) -> list[str]:
    """The providers whose times are shorter than the floor that was measured beside them."""
    percents = {row["provider"]: row.get("percent_of_floor", 0) for row in case.rows}
    return [f"{case.title} ({name} at {percent:.0f} %)" for name, percent in percents.items() if percent > 100]


def first_table(reports: Sequence[Report]) -> str:
    head = [
        "op and shape",
        "best rival",
        "ours, ms",
        "best rival, ms",
        "times faster",
        "of the floor's speed",
        "MB, ours / best rival",
        "least MB of a rival",
    ]
    return table_of(head, 2, [summary_cells(case) for report in reports for case in report.cases])


def loss_of(case: Measured) -> str:
    return f"`{case.ours['op']}`, {case.ours['shape']}, {case.ours['dtype']}{slower_machine(case)}"


def slower_machine(case: Measured) -> str:
    told = f" (measured while the machine was slower: {100 * case.speed:.0f} % of its usual speed)"
    return "" if case.speed == 1 else told


def whole_table(cases: Sequence[Measured]) -> str:
    """The losses of other libraries, each beside ours in its place."""
    head = ["library and loss", "ours, ms", "theirs, ms", "times faster", "compiled, ms", "times faster", "MB ours"]
    return table_of([*head, "MB theirs", "MB compiled"], 1, [whole_cells(case) for case in cases])


def whole_cells(case: Measured) -> list[str]:
    ours, theirs, compiled = case.ours, case.eager, case.compiled
    cells = [loss_of(case), milliseconds(ours["median"])]
    for rival in (theirs, compiled):
        cells += ["-" if rival is None else milliseconds(rival["median"]), times_faster(case, rival)]
    return [*cells, our_megabytes(case), megabytes(theirs), megabytes(compiled)]


def details(report: Report) -> str:
    head = ["case", "provider", "median ms", "p20 to p80", "samples", "fastssl against it", "GFLOP/s or GB/s"]
    head += ["of the floor's speed", "peak extra MB", "error"]
    rows = [(case, row, detail_cells(case, row)) for case in report.cases for row in case.rows]
    if any("wall_median" in row for _, row, _ in rows):  # a GPU's
        head.insert(4, "from Python, ms")
        for _, row, cells in rows:
            cells.insert(4, f"{milliseconds(row['wall_median'])}" if "wall_median" in row else "")
    return table_of(head, 2, [cells for _, _, cells in rows])


def milliseconds(median: float) -> str:
    """Two decimals, or two figures of what is shorter."""
    return f"{median:.2f}" if median >= 0.1 else f"{median:.2g}"


def detail_cells(case: Measured, row: Row) -> list[object]:
    is_ours = row is case.ours
    if "failed" in row:
        return ["", f"{row['provider']}: failed, {row['failed']}", *[""] * 8]
    rate = str(row.get("gflops") or row.get("gigabytes_per_second") or "")
    if "gflops_with_recompute" in row:
        peak = f", {row['percent_of_peak']:.0f} % of the peak" if "percent_of_peak" in row else ""
        rate += f" ({row['gflops_with_recompute']} with recompute{peak})"
    error = row["error_against_float64"]
    return [
        f"{row['shape']}, {row['dtype']}{slower_machine(case)}" if is_ours else "",
        row["provider"] + (" (best rival)" if row is case.best else ""),
        milliseconds(row["median"]),
        f"{milliseconds(row['p20'])} to {milliseconds(row['p80'])}",
        row.get("samples", ""),
        "" if is_ours else f"{case.ours['times_faster_than'][row['provider']]:.2f}x",
        rate,
        f"{row['percent_of_floor']:.0f} %" if "percent_of_floor" in row else "",
        row.get(PEAK, ""),
        "" if error is None else f"{error:.0e}",
    ]
