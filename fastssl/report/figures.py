"""Curves, matrices and the map of features as SVG that takes its colours from the page's CSS, light or dark."""

from __future__ import annotations

import io
import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

Floats = npt.NDArray[np.floating]

# Stand-ins that matplotlib draws with; the page's CSS variables take their place in the SVG.
_INK, _MUTED, _GRID, _ACCENT, _SOFT = "#010101", "#020202", "#030303", "#040404", "#050505"
_VARIABLES = {_INK: "ink", _MUTED: "muted", _GRID: "line", _ACCENT: "accent", _SOFT: "soft"}

# Coprime numbers of colours and shapes: 28 classes that differ in both from their neighbours in the list.
COLOURS, SHAPES = 7, "os^D"
GLYPHS = dict(zip(SHAPES, "●■▲◆", strict=True))
_VARIABLES |= {f"#0606{i:02x}": f"class-{i}" for i in range(COLOURS)}

_STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 12,
    "text.color": _INK,
    "axes.edgecolor": _GRID,
    "axes.labelcolor": _MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": _GRID,
    "grid.linewidth": 0.8,
    "xtick.color": _GRID,
    "ytick.color": _GRID,
    "xtick.labelcolor": _MUTED,
    "ytick.labelcolor": _MUTED,
    "lines.solid_capstyle": "round",
}


@dataclass(frozen=True)
class Level:
    """A horizontal line to compare a curve with."""

    value: float
    label: str


def curve(
    epochs: Sequence[float], values: Sequence[float], *, title: str, means: bool = False, levels: Sequence[Level] = ()
) -> Markup:
    """A curve over epochs.

    Args:
        epochs: of each value, from 0; 1.5 is the middle of the second.
        values: one a step, or one an evaluation.
        title: read out in place of the picture.
        means: draw the values faintly under the mean of each epoch; else mark each value.
        levels: lines to compare with, each with its label above it.
    """
    with mpl.rc_context(_style(title)):
        figure = Figure(figsize=(4.4, 3.0), layout="constrained")
        axes = figure.add_subplot()
        if means:
            axes.plot(epochs, values, color=_SOFT, linewidth=1)
            axes.plot(*_epoch_means(epochs, values), color=_ACCENT, linewidth=2)
        else:
            axes.plot(epochs, values, color=_ACCENT, linewidth=2, marker="o", markersize=4)
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(5))
        _draw_levels(axes, levels, values[-1])
        return _svg(figure, title)


def scatter(points: Floats, classes: Sequence[int] | None, *, title: str) -> Markup:
    """A map of (N, 2) points, without axes: only nearness means anything. Classes choose colour and shape."""
    with mpl.rc_context(_style(title)):
        figure = Figure(figsize=(7.6, 5.6), layout="constrained")
        axes = figure.add_subplot()
        axes.set_axis_off()
        axes.margins(0.02)
        groups = np.zeros(len(points), dtype=int) if classes is None else np.asarray(classes)
        for group in np.unique(groups):
            colour, shape = (
                (_ACCENT, "o") if classes is None else (f"#0606{group % COLOURS:02x}", SHAPES[group % len(SHAPES)])
            )
            x, y = points[groups == group].T
            axes.scatter(x, y, s=16, c=colour, marker=shape, alpha=0.8, linewidths=0)
        return _svg(figure, title)


def matrix(values: Floats, groups: Sequence[tuple[str, int]], *, title: str) -> Markup:
    """A symmetric (N, N) matrix of values in [-1, 1], with a scale.

    Args:
        groups: name and number of rows of each run of rows, in their order; lines divide them.
    """
    with mpl.rc_context(_style(title)):
        figure = Figure(figsize=(4.8, 4.0), layout="constrained")
        axes = figure.add_subplot()
        axes.grid(visible=False)
        shades = axes.imshow(values, cmap="viridis", vmin=-1, vmax=1, interpolation="none")
        ends = np.cumsum([0, *(count for _, count in groups)])
        for end in ends[1:-1] - 0.5:
            axes.axhline(end, color="white", linewidth=0.5)
            axes.axvline(end, color="white", linewidth=0.5)
        axes.set_xticks([])
        axes.set_yticks((ends[:-1] + ends[1:]) / 2 - 0.5, [name for name, _ in groups], fontsize=10)
        axes.tick_params(length=0)
        for spine in axes.spines.values():
            spine.set_visible(False)
        scale = figure.colorbar(shades, ax=axes, ticks=[-1, 0, 1], shrink=0.6, aspect=16)
        scale.outline.set_visible(False)
        return _svg(figure, title)


def _style(title: str) -> Any:  # matplotlib's stubs want a literal for each key
    """The style, with ids that no other figure of the page has."""
    return {**_STYLE, "svg.hashsalt": title}


def _epoch_means(epochs: Sequence[float], values: Sequence[float]) -> tuple[list[float], list[float]]:
    """Means of whole epochs, at their middles; of a single epoch, the values themselves."""
    index = np.ceil(np.asarray(epochs) - 1e-9).astype(int)
    if index.max() < 2:
        return list(epochs), list(values)
    numbers = np.unique(index)
    return [n - 0.5 for n in numbers], [float(np.mean(np.asarray(values)[index == n])) for n in numbers]


def _draw_levels(axes: Axes, levels: Sequence[Level], end: float) -> None:
    """Dashed lines, their labels at the right, on the side where the curve does not ``end``, clear of each other."""
    for level in levels:
        axes.axhline(level.value, color=_MUTED, linewidth=1, linestyle=(0, (4, 3)))
    axes.margins(y=0.12)
    low, high = axes.get_ylim()
    ordered = sorted(levels, key=lambda item: item.value)
    above = [end <= level.value for level in ordered]
    for i, (lower, upper) in enumerate(itertools.pairwise(ordered)):
        between = int(above[i]) + int(not above[i + 1])  # labels that share the space between the two lines
        if upper.value - lower.value < 0.15 * (high - low) * between:
            above[i], above[i + 1] = False, True
    for level, over in zip(ordered, above, strict=True):
        axes.annotate(
            level.label,
            (1, level.value),
            xycoords=axes.get_yaxis_transform(),
            xytext=(0, 2 if over else -2),
            textcoords="offset points",
            ha="right",
            va="bottom" if over else "top",
            color=_MUTED,
            fontsize=11,
        )


def _svg(figure: Figure, title: str) -> Markup:
    """The figure as an inline SVG element that scales with the page."""
    file = io.StringIO()
    figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(
        r'<svg [^>]*?viewBox="([^"]*)"[^>]*>',
        rf'<svg viewBox="\1" role="img" aria-label="{Markup.escape(title)}">',
        svg,
        count=1,
    )
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font-size: \1", svg)
    return Markup(re.sub(r"#[0-9a-f]{6}", lambda found: _css(found[0]), svg))


def _css(colour: str) -> str:
    return f"var(--{_VARIABLES[colour]})" if colour in _VARIABLES else colour
