"""``python -m benchmarks.publish``: docs/performance.md and docs/results.md, every figure from the JSON files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks import demo, harness
from fastssl.files import atomic_write

READ_PERFORMANCE = """\
Each op against its rivals, in turns in one process. *fastssl against it*: how many times faster fastssl is than the
provider of that row; below 1 it is slower. Rates count what the algorithm itself must do; peak extra MB is what one
call adds to the process's high-water mark; error is the largest relative error against float64. *torch eager again* is
the same code timed twice: what differs no more than these two is no difference.

Measured on a CPU. The CUDA and Triton kernels are **not yet run on a GPU**.
"""
READ_DEMO = """\
`{command}` runs the settings of `make demo` with three seeds. Gain by kNN over the same encoder at random
initialisation, in points: {gains}. Seconds are training, evaluation and report together. The test set is small: a
difference of two points between single runs is noise.
"""

HERE = Path(__file__).parent
DOCS = HERE.parent / "docs"
MADE = "<!-- made by `python -m benchmarks.publish` from benchmarks/results; do not edit -->\n"


def circumstances(run: dict[str, Any]) -> str:
    shown = {name: value for name, value in run.items() if value not in ("", None)}
    if "rivals" in shown:
        shown["rivals"] = ", ".join(f"{package} {version}" for package, version in shown["rivals"].items())
    return "\n".join(f"- {name.replace('_', ' ')}: {value}" for name, value in shown.items())


def performance_table(rows: list[dict[str, Any]]) -> str:
    lines = [
        "| case | provider | median ms | p20 to p80 | fastssl against it | GFLOP/s or GB/s | peak extra MB | error |",
        "|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        same = [r for r in rows if (r["shape"], r["dtype"]) == (row["shape"], row["dtype"])]
        ours = next(r for r in same if r["provider"] == harness.OURS)
        is_ours = row is ours
        if "failed" in row:
            lines.append(f"|  | {row['provider']} | failed: {row['failed']} |  |  |  |  |  |")
            continue
        ratio = "" if is_ours else f"{ours['times_faster_than'][row['provider']]:.2f}x"
        best = " (best rival)" if row["provider"] == ours["best_rival"] else ""
        rate = row.get("gflops") or row.get("gigabytes_per_second") or ""
        error = row["error_against_float64"]
        case = f"{row['shape']}, {row['dtype']}" if is_ours else ""
        cells = [
            case,
            row["provider"] + best,
            f"{row['median']:.2f}",
            f"{row['p20']:.2f} to {row['p80']:.2f}",
            ratio,
            rate,
            row.get("peak_extra_megabytes", ""),
            "" if error is None else f"{error:.0e}",
        ]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def performance() -> str:
    parts = [
        MADE,
        "# Performance\n",
        READ_PERFORMANCE,
    ]
    for op in harness.OPS:
        path = HERE / "results" / f"{op}.json"
        if path.exists():
            report = json.loads(path.read_text())
            parts += [f"## {op}\n", performance_table(report["rows"]), "", circumstances(report["run"]), ""]
    return "\n".join(parts)


def results() -> str:
    report = json.loads(demo.RESULT.read_text())
    lines = [
        "| seed | features | kNN | linear probe | seconds |",
        "|---:|---|---:|---:|---:|",
    ]
    for row in report["rows"]:
        for i, (features, accuracy) in enumerate(row["accuracy"].items()):
            first = i == 0
            lines.append(
                f"| {row['seed'] if first else ''} | {features} | {100 * accuracy['knn']:.1f} % "
                f"| {100 * accuracy['linear']:.1f} % | {row['seconds_with_evaluation_and_report'] if first else ''} |"
            )
    gains = ", ".join(f"{row['knn_gain_over_random_initialisation_in_points']:+.1f}" for row in report["rows"])
    return "\n".join(
        [
            MADE,
            "# Results\n",
            "## The demo: SimCLR on the embedded drawings\n",
            READ_DEMO.format(command=report["command"], gains=gains),
            *lines,
            "",
            circumstances(report["run"]),
            "",
        ]
    )


def main() -> None:
    for name, text in (("performance.md", performance()), ("results.md", results())):
        with atomic_write(DOCS / name) as path:
            path.write_text(text)
        print(DOCS / name)


if __name__ == "__main__":
    main()
