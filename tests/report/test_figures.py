from __future__ import annotations

import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest

from fastssl.report import figures
from fastssl.report.figures import Level

SVG = "{http://www.w3.org/2000/svg}"


def texts(svg: str) -> dict[str, float]:
    """The words of a figure, with their heights."""
    root = ET.fromstring(str(svg).replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="x" ', 1))
    return {"".join(node.itertext()): float(node.get("y", "nan")) for node in root.iter(f"{SVG}text")}


def test_a_curve_takes_its_colours_from_the_page() -> None:
    svg = figures.curve([0.5, 1, 1.5, 2], [4, 3, 2, 1], title="A & B", means=True, levels=[Level(2, "half")])
    assert "half" in texts(svg)
    assert "epoch" in texts(svg)
    assert 'aria-label="A &amp; B"' in svg
    assert {"var(--accent)", "var(--soft)", "var(--muted)", "var(--line)"} <= set(re.findall(r"var\(--[a-z]+\)", svg))
    assert not re.findall(r"#0[1-6][0-9a-f]{4}", svg)
    assert "width=" not in svg[: svg.index(">")]


def test_means_of_epochs_lie_in_their_middles() -> None:
    epochs, means = figures._epoch_means([0.5, 1, 1.5, 2], [4, 2, 1, 3])
    assert epochs == [0.5, 1.5]
    assert means == [3, 2]
    assert figures._epoch_means([0.5, 1], [4, 2]) == ([0.5, 1], [4, 2])


@pytest.mark.parametrize("end", [10, 21, 40])
@pytest.mark.parametrize("gap", [0.0, 0.5, 1.0, 3.0, 4.0, 5.0, 6.0, 9.0, 12.0])
def test_labels_of_levels_do_not_touch(gap: float, end: float) -> None:
    levels = [Level(20, "untrained"), Level(20 + gap, "raw pixels")]
    svg = figures.curve([1, 2, 3], [10, 40, end], title="t", levels=levels)
    heights = texts(svg)
    assert abs(heights["untrained"] - heights["raw pixels"]) > 11


def test_a_label_lies_where_the_curve_does_not_end() -> None:
    heights = []
    for end in (10, 40):
        svg = figures.curve([1, 2, 3, 4], [10, 40, 10, end], title="t", levels=[Level(20, "untrained")])
        heights.append(texts(svg)["untrained"])
    assert heights[1] - heights[0] > 11


def test_classes_differ_in_colour_or_shape() -> None:
    points = np.random.default_rng(0).normal(size=(28, 2))
    looks = {(i % figures.COLOURS, figures.SHAPES[i % len(figures.SHAPES)]) for i in range(28)}
    assert len(looks) == 28
    svg = figures.scatter(points, list(range(28)), title="t")
    assert {f"var(--class-{i})" for i in range(figures.COLOURS)} == set(re.findall(r"var\(--class-\d\)", svg))


def test_points_without_classes_have_one_colour() -> None:
    svg = figures.scatter(np.random.default_rng(0).normal(size=(28, 2)), None, title="t")
    assert "class-" not in svg
    assert "var(--accent)" in svg
