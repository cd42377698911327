"""What the folders of a source mean: which images are for training, which for testing, and of what class each is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fastssl.errors import UserError

_TRAIN = "train"
_HELD_OUT = ("test", "val", "valid", "validation")
_NOWHERE = frozenset(("", ".", ".."))


@dataclass(frozen=True)
class Layout:
    """For each image the split it was put in and its class.

    Args:
        given: whether the source comes with a split of its own.
        splits: "train", "test", or "" for an image that is in neither; all "train" if no split is given.
        classes: sorted; empty if the folders name none.
        labels: index into ``classes``, -1 for an image in none.
    """

    given: bool
    splits: tuple[str, ...]
    classes: tuple[str, ...]
    labels: tuple[int, ...]


def arrange(names: Sequence[str]) -> Layout:
    """Reads the layout off the paths of the images.

    Folders that hold everything are ignored. ``train/`` beside ``test/`` (or, without it, ``val/``, ``valid/`` or
    ``validation/``) is a given split; images beside these folders are in neither. Below that, first folders are
    classes if there are two or more and every training image is in one. A ``test/`` without class folders beside a
    ``train/`` that has them cannot be scored, and so is in neither.

    Raises:
        UserError: if a class is only in the test folder.
    """
    paths = _below_common_root([_parts(name) for name in names])
    tops = {path[0].lower() for path in paths if len(path) > 1}
    held_out = next((name for name in _HELD_OUT if name in tops), None)
    given = _TRAIN in tops and held_out is not None
    splits = [_TRAIN] * len(paths)
    if given:
        roles = {_TRAIN: _TRAIN, held_out: "test"}
        splits = [roles.get(path[0].lower(), "") if len(path) > 1 else "" for path in paths]
        paths = [path[1:] if len(path) > 1 and path[0].lower() in (_TRAIN, *_HELD_OUT) else path for path in paths]

    classes = _classes([path for path, split in zip(paths, splits, strict=True) if split == _TRAIN])
    index = {name: i for i, name in enumerate(classes)}
    labels = [index.get(path[0], -1) if len(path) > 1 else -1 for path in paths]
    if classes and given:
        tests = [i for i, split in enumerate(splits) if split == "test"]
        if all(len(paths[i]) == 1 for i in tests):
            splits = [split if split == _TRAIN else "" for split in splits]
        elif stray := next((names[i] for i in tests if labels[i] < 0), None):
            raise UserError(f"the class folder of {stray!r} has no counterpart in train/: add it there, or remove it")
    return Layout(given, tuple(splits), classes, tuple(labels))


def _parts(name: str) -> tuple[str, ...]:
    parts = name.split("/")
    return tuple(parts if _NOWHERE.isdisjoint(parts) else [part for part in parts if part not in _NOWHERE])


def _below_common_root(paths: list[tuple[str, ...]]) -> list[tuple[str, ...]]:
    while len({path[0] for path in paths}) == 1 and all(len(path) > 1 for path in paths):
        paths = [path[1:] for path in paths]
    return paths


def _classes(paths: list[tuple[str, ...]]) -> tuple[str, ...]:
    first = {path[0] for path in paths}
    return tuple(sorted(first)) if len(first) > 1 and all(len(path) > 1 for path in paths) else ()
