"""Which files of two sets are taken for the same before they are read."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from fastssl.data.alike import WAYS, Likely, digest, keys, match
from fastssl.data.sources import Entries

File = tuple[str, int, str]
OLD: list[File] = [("cat/1.png", 7, "10 11"), ("cat/2.png", 8, "20 21"), ("dog/1.png", 9, "30 31")]


def known(files: Sequence[File], *, timed: bool = True) -> np.ndarray:
    names, sizes, times = (list(values) for values in zip(*files, strict=True))
    return keys(Entries(names, sizes, lambda i: b"", times if timed else None))


@pytest.mark.parametrize(
    ("file", "row", "same"),
    [
        (OLD[0], 0, True),
        (("cat/1.png", 7, "10 99"), 0, False),  # touched
        (("cat/1.png", 7, "98 99"), 0, False),
        (("cow/3.png", 8, "20 99"), 1, False),  # renamed
        (("cow/1.png", 9, "98 99"), 2, False),  # copied into another folder
        (("cat/1.png", 8, "98 99"), -1, False),
        (("cow/3.png", 7, "98 99"), -1, False),
    ],
)
def test_a_file_is_known_again_by_its_name_its_place_or_its_time(file: File, row: int, same: bool) -> None:
    found = match(known([("other.png", 1, "1 1"), file]), known(OLD))
    assert (found.rows.tolist(), found.same.tolist()) == ([-1, row], [False, same])


def test_a_surer_way_goes_before_others_whatever_the_order() -> None:
    new = [*reversed(OLD), ("cow/1.png", 7, "10 11")]
    found = match(known(new), known(OLD))
    assert (found.rows.tolist(), found.same.tolist()) == ([2, 1, 0, 0], [True, True, True, False])


def test_files_of_one_name_are_not_surely_the_same() -> None:
    one, two = [("\ufffd.png", 7, "10 11")], [("\ufffd.png", 7, "10 11")] * 2
    for new, old in ((two, one), (one, two), (two, two)):
        found = match(known(new), known(old))
        assert (found.rows >= 0).all()
        assert not found.same.any()


def test_without_times_files_of_one_size_may_be_the_same() -> None:
    found = match(known([("a.png", 9, ""), ("b.png", 1, "")], timed=False), known(OLD, timed=False))
    assert found.rows.tolist() == [2, -1]


@pytest.mark.parametrize("shared", [0, 1, 7, 200])
@pytest.mark.parametrize("count", [1, 300, 9000])
def test_of_many_sets_the_likely_files_alone_are_looked_at_and_nothing_is_missed(shared: int, count: int) -> None:
    rng = np.random.default_rng(0)

    def some() -> np.ndarray:
        drawn = rng.integers(1, 4000, (count, 3)).tolist()
        return known([(f"{i % 3}/{name}.png", size, f"{time} 0") for i, (name, size, time) in enumerate(drawn)]).copy()

    new, old = some(), some()
    new[:shared] = old[:shared][::-1]
    found, expected = Likely(new).match(old), match(new, old)
    hit = expected.rows >= 0
    assert np.array_equal(found.rows >= 0, hit)
    surest = [(new[hit] == old[rows[hit]]).argmax(1) for rows in (found.rows, expected.rows)]
    assert np.array_equal(*surest)
    assert np.array_equal(found.same, expected.same)
    assert hit.any() or not shared


def test_names_that_are_no_text_have_keys() -> None:
    assert known([("caf\udce9.png", 1, "")]).shape == (1, WAYS)


def test_digests_tell_contents_apart() -> None:
    assert len({tuple(digest(data)) for data in (b"", b"\0", b"a", b"b", b"ab", b"ba")}) == 6
    assert (digest(b"ab") == digest(bytes(bytearray(b"ab")))).all()
