from __future__ import annotations

import base64
import io
from dataclasses import replace

import numpy as np
import torch
from PIL import Image
from report_helpers import images, without_labels

from fastssl.data import plans
from fastssl.report import pictures
from fastssl.report.sample import choose, draw_sample


def decoded(uri: str) -> np.ndarray:
    assert uri.startswith("data:image/png;base64,")
    return np.array(Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))))


def test_the_nearest_come_first_and_classes_are_marked() -> None:
    bank, queries = images(24, 0), images(3, 1)
    angle = torch.linspace(0, 1, 24)
    bank_features = torch.stack([angle.cos(), angle.sin()], dim=1)
    query_features = torch.tensor([[1.0, 0.0]]).repeat(3, 1)
    table = pictures.neighbours(
        bank, queries, *pictures.nearest(bank, bank_features, queries, query_features, rows=3, count=5, seed=0)
    )
    assert sorted(row.query.label for row in table) == ["<blue>", "green", "red"]
    for row in table:
        assert [picture.name for picture in row.found] == [f"0-{i}.png" for i in range(5)]
        assert [picture.right for picture in row.found] == [p.label == row.query.label for p in row.found]


def test_an_image_is_not_its_own_neighbour_and_unlabelled_ones_are_not_marked() -> None:
    bank = without_labels(images(6, 0))
    table = pictures.neighbours(
        bank, bank, *pictures.nearest(bank, torch.eye(6), bank, torch.eye(6), rows=12, count=8, seed=0)
    )
    assert len(table) == 6
    for row in table:
        assert len(row.found) == 5
        assert row.query.name not in {picture.name for picture in row.found}
        assert {picture.right for picture in row.found} == {None}


def test_queries_take_turns_through_the_classes() -> None:
    data = images(24, 0)
    chosen = choose(data, 7, seed=0)
    assert torch.bincount(data.labels[chosen]).tolist() in ([3, 2, 2], [2, 3, 2], [2, 2, 3])
    assert not torch.equal(chosen, choose(data, 7, seed=1))


def test_pictures_are_the_images() -> None:
    data = images(2, 0)
    assert np.array_equal(decoded(pictures._uri(data.images[0])), data.images[0].permute(1, 2, 0).numpy())
    assert decoded(pictures._uri(torch.zeros(3, 300, 300, dtype=torch.uint8))).shape == (96, 96, 3)
    assert decoded(pictures._uri(torch.zeros(3, 50, 200, dtype=torch.uint8))).shape == (24, 96, 3)


def test_views_are_shown_in_their_colours() -> None:
    data = images(6, 0)
    still = replace(plans.eval(16), views=2)
    rows = pictures.sample_views(data, draw_sample(data, still, rows=4, seed=0))
    assert len(rows) == 4
    for item in rows:
        assert len(item.views) == 2
        original = decoded(item.original.uri).astype(int)
        assert all(abs(decoded(view.uri).astype(int) - original).max() <= 1 for view in item.views)
