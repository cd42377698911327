"""Which name is offered for one that there is not."""

from __future__ import annotations

import pytest

from fastssl.errors import nearest, slips, unknown

NAMES = ("byol", "dino", "eval", "mae", "moco_v2", "simclr")
OPTIONS = ("--batch_size", "--epochs", "--optim.lr", "--plan.blur", "--plan.brightness", "--plan.local.blur")


@pytest.mark.parametrize(
    ("given", "names", "offered"),
    [
        ("dina", NAMES, "dino"),
        ("SimCLR", NAMES, "simclr"),
        ("simlcr", NAMES, "simclr"),
        ("simclr_v3", NAMES, "simclr"),
        ("moco", NAMES, "moco_v2"),
        ("mea", NAMES, "mae"),
        ("--batch", OPTIONS, "--batch_size"),
        ("--batchsize", OPTIONS, "--batch_size"),
        ("--epoch", OPTIONS, "--epochs"),
        ("--optm.lr", OPTIONS, "--optim.lr"),
        ("--plan.lokal.blur", OPTIONS, "--plan.local.blur"),
        ("--plan.bluring", OPTIONS, "--plan.blur"),
    ],
)
def test_a_slip_and_a_beginning_are_known(given: str, names: tuple[str, ...], offered: str) -> None:
    assert nearest(given, names) == offered


@pytest.mark.parametrize(
    ("given", "names"),
    [
        ("male", ("eval", "byol")),
        ("vicreg", NAMES),
        ("--plan.sharpness", OPTIONS),
        ("--plan.contrast", OPTIONS),
        ("--sharpness", OPTIONS),
        ("--optim.wd", OPTIONS),
        ("", NAMES),
        ("x" * 100_000, NAMES),
    ],
)
def test_another_word_is_not_taken_for_a_slip(given: str, names: tuple[str, ...]) -> None:
    assert nearest(given, names) is None


def test_without_a_likely_name_all_are_told() -> None:
    assert str(unknown("plan", "vicreg", NAMES[::-1])) == f"unknown plan 'vicreg': choose one of: {', '.join(NAMES)}"


@pytest.mark.parametrize(
    ("a", "b", "count"), [("", "", 0), ("", "ab", 2), ("ab", "ba", 1), ("abc", "abd", 1), ("abcd", "bcd", 1)]
)
def test_slips_are_counted(a: str, b: str, count: int) -> None:
    assert slips(a, b) == slips(b, a) == count
