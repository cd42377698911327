from __future__ import annotations

from dataclasses import replace

import numpy as np
from report_helpers import images

from fastssl.data import plans
from fastssl.report.grid import draw_columns, draw_grid


def test_a_row_is_an_image_and_a_column_a_view() -> None:
    data = images(6, 0)
    still = replace(plans.eval(16), views=2)
    picture = np.asarray(draw_grid(data, still, rows=3, seed=0)).astype(int)
    assert picture.shape == (18 + 6 + 3 * 102, 6 + 3 * 102, 3)
    cells = [picture[24 + 102 * row : 120 + 102 * row, 6 + 102 * column : 102 + 102 * column] for row in range(3)
             for column in range(3)]  # fmt: skip
    for row in range(3):
        original, first, second = cells[3 * row : 3 * row + 3]
        assert abs(first - original).max() <= 3
        assert np.array_equal(first, second)
        assert original.std() > 10
    assert abs(cells[0] - cells[3]).mean() > 10


def test_smaller_views_are_drawn_smaller() -> None:
    plan = plans.dino(56, local_views=2)
    picture = draw_grid(images(4, 0), plan, rows=2, seed=0)
    assert picture.width == 6 + 3 * 102 + 2 * (round(96 * 24 / 56) + 6)
    assert picture.height == 24 + 12 + 2 * 102  # a second line of headings, for the names of the parts


def test_the_parts_of_a_plan_are_named_above_their_views() -> None:
    named = plans.byol(16)
    nameless = replace(named, name="", others=tuple(replace(other, name="") for other in named.others))
    with_names, without = (np.asarray(draw_grid(images(4, 0), plan, rows=2, seed=0)) for plan in (named, nameless))
    assert np.array_equal(with_names[18 + 12 :], without[18:])  # the same pictures, lower
    assert np.array_equal(with_names[:18], without[:18])
    second = with_names[18:30]
    ink = [second[:, 6 + 102 * column : 102 + 102 * column].min() < 150 for column in range(3)]
    assert ink == [False, True, True]
    first, last = second[:, 108:204], second[:, 210:306]
    assert not np.array_equal(first, last)


def test_the_seed_chooses() -> None:
    data = images(12, 0)
    one, again, other = (np.asarray(draw_grid(data, plans.mae(16), rows=2, seed=seed)) for seed in (0, 0, 1))
    assert np.array_equal(one, again)
    assert not np.array_equal(one, other)


def test_columns_of_pictures_stand_under_their_headings() -> None:
    shown = images(3, 0).images
    picture = np.asarray(draw_columns({"one": shown, "another": shown.flip(0)})).astype(int)
    assert picture.shape == (18 + 6 + 3 * 102, 6 + 2 * 102, 3)
    first, last = picture[24:120, 6:102], picture[24 + 204 : 120 + 204, 108:204]
    assert np.array_equal(first, last)
    assert picture[6:18, 6:102].min() < 150  # the heading's ink
