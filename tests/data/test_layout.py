from __future__ import annotations

import pytest

from fastssl.data.layout import arrange
from fastssl.errors import UserError


def test_first_folders_are_classes() -> None:
    layout = arrange(["cat/1.png", "dog/deep/2.png", "cat/3.png"])
    assert not layout.given
    assert layout.classes == ("cat", "dog")
    assert layout.labels == (0, 1, 0)
    assert layout.splits == ("train",) * 3


@pytest.mark.parametrize("names", [["1.png"], ["1.png", "2.png"], ["only/1.png", "only/2.png"], ["cat/1.png", "2.png"]])
def test_without_two_class_folders_there_are_no_labels(names: list[str]) -> None:
    layout = arrange(names)
    assert layout.classes == ()
    assert set(layout.labels) == {-1}


def test_folders_that_hold_everything_are_ignored() -> None:
    layout = arrange(["./set/v1/cat/1.png", "./set/v1/dog/1.png"])
    assert layout.classes == ("cat", "dog")


@pytest.mark.parametrize("held_out", ["test", "val", "valid", "validation", "Test"])
def test_train_and_held_out_folders_are_a_split(held_out: str) -> None:
    layout = arrange(["x/train/cat/1.png", "x/train/dog/1.png", f"x/{held_out}/dog/2.png", "x/other/3.png"])
    assert layout.given
    assert layout.classes == ("cat", "dog")
    assert layout.splits == ("train", "train", "test", "")
    assert layout.labels[:3] == (0, 1, 1)


def test_a_test_folder_comes_before_a_validation_folder() -> None:
    layout = arrange(["train/a/1.png", "train/b/1.png", "val/a/1.png", "test/b/1.png"])
    assert layout.splits == ("train", "train", "", "test")
    assert layout.labels == (0, 1, 0, 1)


def test_a_train_folder_alone_is_no_split() -> None:
    layout = arrange(["train/a/1.png", "train/b/1.png"])
    assert not layout.given
    assert layout.classes == ("a", "b")


def test_a_split_needs_no_classes() -> None:
    layout = arrange(["train/1.png", "test/2.png"])
    assert layout.splits == ("train", "test")
    assert layout.classes == ()


def test_a_test_folder_that_cannot_be_scored_is_left_out() -> None:
    layout = arrange(["train/a/1.png", "train/b/1.png", "test/2.png"])
    assert layout.splits == ("train", "train", "")


def test_a_class_only_to_test_on_is_refused() -> None:
    with pytest.raises(UserError, match=r"'test/c/1\.png'"):
        arrange(["train/a/1.png", "train/b/1.png", "test/c/1.png"])
