"""Files that cannot be read are named once each, however many there are."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from fastssl.data.decode import UnreadableError
from fastssl.data.files import Files
from fastssl.data.sources import Entry, Listing, Skipped
from fastssl.errors import UserError


class Counting(list[Skipped]):
    """A list that counts the items that it hands out."""

    handed = 0

    def __iter__(self) -> Iterator[Skipped]:
        for item in super().__iter__():
            self.handed += 1
            yield item

    def __getitem__(self, index: Any) -> Any:
        found = super().__getitem__(index)
        self.handed += len(found) if isinstance(index, slice) else 1
        return found


def unread(count: int) -> list[Entry]:
    return [Entry(f"{i}.jpg", bytes) for i in range(count)]


def test_a_new_name_is_not_compared_with_all_before() -> None:
    skipped = Counting([Skipped("a folder", "may not be read")])
    files = Files(Listing(unread(300), skipped), 1.0, None)
    for position in range(300):
        files.give_up(position, "damaged")
        files.give_up(position, "damaged in another way")
    assert skipped.handed <= 2 * 301
    assert [item.name for item in skipped] == ["a folder", *(f"{i}.jpg" for i in range(300))]


def test_what_another_reader_has_named_is_counted_and_not_named_again() -> None:
    skipped: list[Skipped] = []
    first, second = (Files(Listing(unread(4), skipped), 0.5, "it is left out") for _ in range(2))
    with pytest.warns(UserWarning, match="'1.jpg' cannot be read"):
        first.give_up(1, "damaged")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        second.give_up(1, "damaged")
    with pytest.warns(UserWarning, match="'2.jpg' cannot be read"):
        second.part([2, 3], "it is left out").give_up(0, "damaged")
    assert [item.name for item in first.skipped] == ["1.jpg", "2.jpg"]
    assert second.is_lost(2)
    assert not first.is_lost(2)
    with pytest.warns(UserWarning, match="'0.jpg'"), pytest.raises(UserError, match="3 so far, 2 of 4 allowed"):
        second.give_up(0, "damaged")


def test_what_becomes_of_their_places_is_said_once() -> None:
    files = Files(Listing(unread(5), []), 1.0, "another is taken")
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        files.give_up(0, "damaged")
        files.give_up(1, "empty")
        files.part([2], "another is taken").give_up(0, "damaged")
        files.part([3], "it is left out").give_up(0, "damaged")
        files.give_up(4, "damaged")
    assert [str(item.message) for item in warned] == [
        "'0.jpg' cannot be read (damaged): another is taken",
        "'1.jpg' cannot be read (empty)",
        "'2.jpg' cannot be read (damaged)",
        "'3.jpg' cannot be read (damaged): it is left out",
        "'4.jpg' cannot be read (damaged)",
    ]


def test_a_warning_shows_the_call_that_met_the_file_and_on_a_thread_of_ours_the_library() -> None:
    files = Files(Listing(unread(2), []), 1.0, "it is left out")
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        files.give_up(0, "damaged")
        with ThreadPoolExecutor(1) as pool:
            pool.submit(files.read, 1, _refuse).result()
    assert [item.filename == __file__ for item in warned] == [True, False]


def _refuse(_: bytes) -> None:
    raise UnreadableError("damaged")
