"""Matrices of similarities: which images are shown, and what the figures say."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from report_helpers import images, without_labels
from torch import Tensor, nn

from fastssl.data.images import ImageSet
from fastssl.report import similarity


class Colours(nn.Module):
    """The mean colour: what tells the classes of `images` apart."""

    feature_dim = 3

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3))


class Blind(nn.Module):
    """The same features, of whatever image."""

    feature_dim = 3

    def forward(self, x: Tensor) -> Tensor:
        return torch.ones(len(x), 3)


def many_classes(count: int) -> ImageSet:
    several = images(2 * count, 0)
    return replace(several, labels=torch.arange(2 * count) // 2, classes=tuple(f"class {i}" for i in range(count)))


def test_classes_that_are_told_apart_are_alike_within_and_not_between() -> None:
    told, blind = similarity.matrices(images(24, 0), {"told": Colours(), "blind": Blind()}, size=16, seed=0)
    assert (told.name, blind.name) == ("told", "blind")
    assert told.within > 0.95
    assert told.between < -0.4  # three directions from their mean
    assert blind.within == blind.between == 0.0
    assert all(name in told.svg for name in ("red", "green", "&lt;blue&gt;"))
    assert 'aria-label="Similarities of images, told"' in told.svg


def test_the_first_classes_are_shown_evenly(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[Tensor] = []
    monkeypatch.setattr(
        similarity.figures, "matrix", lambda values, groups, title: shown.append((len(values), groups)) or ""
    )
    similarity.matrices(many_classes(30), {"any": Colours()}, size=16, seed=0)
    similarity.matrices(images(600, 0), {"any": Colours()}, size=16, seed=0)
    (few, groups), (many, three) = shown
    assert few == 2 * similarity.CLASSES
    assert groups == [(f"class {i}", 2) for i in range(similarity.CLASSES)]
    assert many == similarity.IMAGES
    assert [count for _, count in three] == [40, 40, 40]


def test_there_is_nothing_to_compare_without_classes() -> None:
    of_one = replace(images(8, 0), labels=torch.zeros(8, dtype=torch.int64))
    assert not similarity.matrices(without_labels(images(8, 0)), {"any": Colours()}, size=16, seed=0)
    assert not similarity.matrices(of_one, {"any": Colours()}, size=16, seed=0)
    alone = similarity.matrices(many_classes(2).subset(torch.tensor([0, 2])), {"any": Colours()}, size=16, seed=0)
    assert alone[0].within == 0.0
