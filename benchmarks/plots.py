"""Time and memory over the size of the input."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator

from benchmarks.harness import AGAIN, OURS
from benchmarks.summary import PEAK, Series

INK, MUTED, GRID, ACCENT = "#1f2328", "#59636e", "#e6e8eb", "#c2410c"
RIVALS = ("#3b6ea8", "#7a9f35", "#8a63b5", "#5b9a9a", "#a8893b", "#777777")
STYLE: dict[str, Any] = {
    "svg.hashsalt": "fastssl",  # the same file from the same numbers
    "figure.facecolor": "white",
    "font.size": 10,
    "text.color": INK,
    "axes.edgecolor": GRID,
    "axes.labelcolor": MUTED,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "xtick.color": GRID,
    "ytick.color": GRID,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
}


def plain(value: float, _: object = None) -> str:
    """1000 as ``1,000``, 0.1 as ``0.1``."""
    return f"{value:,.0f}" if value >= 1 else f"{value:g}"


def draw(series: Series, path: Path, kind: str = "svg") -> None:
    """Writes the picture of a series: milliseconds on the left and, where it was measured, memory on the right."""
    quantities = [("median", "one call, milliseconds"), (PEAK, "peak extra memory, MB")]
    shown = [q for q in quantities if any(q[0] in case.ours for case in series.cases.values())]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(4.4 * len(shown) + 0.4, 3.9), layout="constrained")
        for axes, (key, label) in zip(figure.subplots(1, len(shown), squeeze=False)[0], shown, strict=True):
            _curves(axes, series, key)
            axes.set_title(label, color=INK)
            axes.set_xlabel(series.variable)
        handles, names = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, names, loc="outside lower center", ncols=1 + len(shown), frameon=False, labelcolor=INK)
        figure.suptitle(f"{series.op}, {series.fixed}", x=0.01, ha="left", fontsize=11)
        figure.savefig(path, format=kind, metadata={"Date": None} if kind == "svg" else None)


def _curves(axes: Axes, series: Series, key: str) -> None:
    providers = dict.fromkeys(row["provider"] for case in series.cases.values() for row in case.rows)
    rivals = [name for name in providers if name != OURS and not name.endswith(AGAIN)]
    for i, name in enumerate([OURS, *rivals]):
        points = [
            (size, row[key])
            for size, case in series.cases.items()
            for row in case.rows
            if row["provider"] == name and row.get(key)
        ]
        ours = name == OURS
        colour = ACCENT if ours else RIVALS[(i - 1) % len(RIVALS)]
        axes.plot(
            *zip(*points, strict=True),
            color=colour,
            linewidth=2.6 if ours else 1.4,
            linestyle="--" if i % 2 else "-",  # dashes lie above lines, so that both of two equal curves are seen
            marker="o",
            markersize=5 if ours else 3.5,
            label=name,
            zorder=3 if ours else 2 + i % 2 / 2,
        )
    axes.set(xscale="log", yscale="log")
    axes.set_xticks(list(series.cases))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(plain))
    axes.yaxis.set_major_formatter(FuncFormatter(plain))
