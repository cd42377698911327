"""The benchmark of a start on a folder of many files: every provider comes to a whole batch."""

from __future__ import annotations

import pytest
from other_libraries import load_or_skip

from benchmarks import harness
from benchmarks.data import start
from fastssl.data.images import Splits
from fastssl.data.sources import Entries


@pytest.mark.parametrize("make", [start.by_cache, start.by_new_cache, start.by_stream, start.by_torchvision])
def test_a_call_comes_to_the_first_batch(make, monkeypatch: pytest.MonkeyPatch) -> None:
    if make is start.by_torchvision:
        load_or_skip("torchvision.datasets")
    monkeypatch.setattr(start, "BATCH", 4)
    work = make(300)
    assert work() == work() == 2


def test_a_second_start_decodes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(start, "BATCH", 4)
    work = start.by_cache(400)
    monkeypatch.setattr("fastssl.data.rows.read_each", None)
    assert work() == 2
    assert harness.backend(work)  # the first op is called where it can be asked


def test_nothing_is_decoded_but_the_batches_that_are_made_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(start, "BATCH", 4)
    read: list[int] = []
    load = start.images.stream
    monkeypatch.setattr(start.images, "stream", lambda *args, **kwargs: counted(load(*args, **kwargs), read))
    start.by_stream(500)()
    assert 4 <= len(read) <= 3 * 4


def test_the_first_time_nothing_else_is_decoded_either(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(start, "BATCH", 4)
    read: list[int] = []
    load = start.images.load_lazily
    monkeypatch.setattr(start.images, "load_lazily", lambda *args, **kwargs: counted(load(*args, **kwargs), read))
    work = start.by_new_cache(600)
    for _ in range(2):
        read.clear()
        assert work() == 2
        assert 4 <= len(read) <= 3 * 4


def counted(splits: Splits, read: list[int]) -> Splits:
    files = splits.train.images.files.listing
    entries = files.entries
    files.entries = Entries(entries.names, entries.sizes, lambda i: (read.append(i), entries[i].read())[1])
    return splits
