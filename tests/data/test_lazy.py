"""Images decoded when they are first asked for: nothing but the time tells whether they were before."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from image_files import encode, noise, write_tar, write_tree, write_zip
from torch import Tensor

from fastssl.data import kept as keeping
from fastssl.data import plans, rows
from fastssl.data.images import Cache, ImageSet, load, load_lazily
from fastssl.data.loader import Loader
from fastssl.data.rows import Decoded
from fastssl.errors import UserError

pytestmark = pytest.mark.filterwarnings("ignore:.*cannot be read")
PLAN = plans.simclr(8)
GOOD = {f"{kind}/{i:02}.png": encode(noise(seed=i)) for kind in ("cat", "dog") for i in range(12)}
FILES = GOOD | {"cat/03.png": b"no image"}


@pytest.fixture
def source(tmp_path: Path) -> str:
    return str(write_tree(tmp_path / "pets", FILES))


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that are read."""
    found: list[str] = []
    read_each = rows.read_each

    def noted(entries, *args):  # type: ignore[no-untyped-def]
        found.extend(entry.name for entry in entries)
        return read_each(entries, *args)

    monkeypatch.setattr(rows, "read_each", noted)
    return found


def served(data: ImageSet, epoch: int = 0, start: int = 0, stop: int = 99) -> list[list[Tensor]]:
    batches = Loader(data, PLAN, 4, seed=5).epoch(epoch, start)
    return [views for _, views in zip(range(stop - start), batches, strict=False)]


def same(a: Sequence[Sequence[Tensor]], b: Sequence[Sequence[Tensor]]) -> bool:
    pairs = [(x, y) for p, q in zip(a, b, strict=True) for x, y in zip(p, q, strict=True)]
    return bool(pairs) and all(torch.equal(x, y) for x, y in pairs)


def test_a_first_epoch_is_that_of_a_start_from_a_complete_cache(source: str, tmp_path: Path, read: list[str]) -> None:
    first = load_lazily(source, size=16, cache=Cache(tmp_path / "new")).train
    assert read == []
    epochs = [served(first, epoch) for epoch in range(3)]
    whole = Cache(tmp_path / "whole")
    load(source, size=16, cache=whole)
    read.clear()
    later = load_lazily(source, size=16, cache=whole).train
    assert all(same(served(later, epoch), epochs[epoch]) for epoch in range(3))
    assert set(read) <= {"cat/03.png"}
    in_memory = load_lazily(source, size=16).train
    assert all(same(served(in_memory, epoch), epochs[epoch]) for epoch in range(3))


def test_without_unreadable_files_it_is_also_that_of_images_in_memory(tmp_path: Path) -> None:
    source = str(write_tree(tmp_path / "pets", GOOD))
    lazy, loaded = load_lazily(source, size=16), load(source, size=16)
    assert isinstance(loaded.train.images, Tensor)
    assert same(served(lazy.train), served(loaded.train))
    assert lazy.test is not None
    assert loaded.test is not None
    assert torch.equal(lazy.test.images[:], loaded.test.images[:])
    assert (lazy.test.names, lazy.test.classes) == (loaded.test.names, loaded.test.classes)


@pytest.mark.parametrize("steps", [1, 3])
def test_a_run_resumed_in_its_first_epoch_sees_what_an_uninterrupted_one_sees(
    steps: int, source: str, tmp_path: Path
) -> None:
    whole = served(load_lazily(source, size=16).train)
    cache = Cache(tmp_path / "cache")
    first = served(load_lazily(source, size=16, cache=cache).train, stop=steps)
    resumed = served(load_lazily(source, size=16, cache=cache).train, start=steps)
    assert same([*first, *resumed], whole)
    anew = served(load_lazily(source, size=16, cache=Cache(tmp_path / "other")).train, start=steps)
    assert same(anew, resumed)


@pytest.mark.parametrize("pack", [write_tree, write_zip, write_tar, lambda path, what: write_tar(path, what, "gz")])
def test_each_image_is_decoded_once_whichever_process_needs_it(pack, tmp_path: Path, read: list[str]) -> None:
    path, told = str(pack(tmp_path / "animals", GOOD)), []
    cache = Cache(tmp_path / "cache", told.append)
    one, other = (load_lazily(path, size=16, cache=cache) for _ in range(2))  # as of two processes
    for epoch in range(3):
        served(one.train, epoch)
        served(other.train, epoch)
    for splits in (one, other):
        assert splits.test is not None
        assert len(splits.test.images[:]) == 4
        splits.train.images[:]
    assert sorted(read) == sorted(GOOD)
    load_lazily(path, size=16, cache=cache)
    assert told[-1].startswith("24 images of 16 x 16, 18.4 kB, from ")


def test_what_an_interrupted_run_has_decoded_is_there(source: str, tmp_path: Path, read: list[str]) -> None:
    told: list[str] = []
    cache = Cache(tmp_path / "cache", told.append)
    load_lazily(source, size=16, cache=cache).train.images[torch.tensor([5, 6, 7])]
    read.clear()
    again = load_lazily(source, size=16, cache=cache).train
    assert told[-1].startswith("3 of 24 images of 16 x 16, 18.4 kB, from ")
    again.images[torch.tensor([4, 5, 6, 7])]
    assert read == [again.names[4]]


@pytest.mark.parametrize("start", ["first", "second"])
def test_how_many_images_are_read_is_told(source: str, tmp_path: Path, start: str) -> None:
    cache = Cache(tmp_path / "cache")
    if start == "second":
        load_lazily(source, size=16, cache=cache).readable()
    splits = load_lazily(source, size=16, cache=cache)
    assert splits.test is not None
    train, test = splits.train.images, splits.test.images
    assert isinstance(train, Decoded)
    assert isinstance(test, Decoded)
    whole = {i for i, name in enumerate(splits.train.names) if name != "cat/03.png"}
    known = set() if start == "first" else set(whole)  # from the cache, before anybody asks for them
    assert train.read() == len(known)
    for index in ([1, 5, 5], [5, 7]):
        train[torch.tensor(index)]
        known |= set(index)
        assert train.read() == len(known)
    assert train.subset(torch.tensor([1, 2])).read() == len(known & {1, 2})
    assert test.read() == (0 if start == "first" else sum(name != "cat/03.png" for name in splits.test.names))
    splits.readable()
    assert (train.read(), test.read()) == (len(train), len(test))


def test_what_another_process_has_read_counts_too(source: str, tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache")
    mine, others = (load_lazily(source, size=16, cache=cache).train.images for _ in range(2))
    others[torch.tensor([5, 7])]
    assert isinstance(mine, Decoded)
    assert mine.read() == 2


def test_unreadable_files_are_named_and_left_out_of_scores(source: str, read: list[str]) -> None:
    splits = load_lazily(source, size=16)
    every = [*splits.train.names, *(splits.test.names if splits.test else ())]
    assert sorted(every) == sorted(FILES)
    with pytest.warns(UserWarning, match=r"'cat/03\.png' cannot be read \(not an image"):
        readable = splits.readable()
    kept = [*readable.train.names, *(readable.test.names if readable.test else ())]
    assert set(every) - set(kept) == {"cat/03.png"}
    assert [item.name for item in splits.train.skipped] == ["cat/03.png"]
    assert readable.train.labels is not None
    assert len(readable.train.labels) == len(readable.train) == len(readable.train.images[:])
    assert splits.readable().train.names == readable.train.names
    assert sorted(read) == sorted(FILES)


def test_too_many_unreadable_files_end_the_epoch_whichever_part_they_are_in(tmp_path: Path) -> None:
    bad = dict.fromkeys(("train/a.png", "test/b.png", "test/c.png"), b"no image")
    files = bad | {f"train/{i}.png": encode(noise(seed=i)) for i in range(17)}
    splits = load_lazily(str(write_tree(tmp_path, files)), size=8)
    served(splits.train)
    assert splits.test is not None
    with pytest.raises(UserError, match="too many unreadable files: 3 so far, 2 of 20 allowed"):
        splits.test.readable()


def test_a_test_set_of_which_nothing_can_be_read_is_none(tmp_path: Path) -> None:
    files = {f"test/{i}.png": b"no image" for i in range(3)} | {
        f"train/{i}.png": encode(noise(seed=i)) for i in range(5)
    }
    splits = load_lazily(str(write_tree(tmp_path, files)), size=8, max_skipped=0.5).readable()
    assert (len(splits.train), splits.test) == (5, None)


def test_without_an_image_to_train_on_there_is_an_error(tmp_path: Path) -> None:
    files = {f"train/{i}.png": b"no image" for i in range(3)} | {
        f"test/{i}.png": encode(noise(seed=i)) for i in range(5)
    }
    splits = load_lazily(str(write_tree(tmp_path, files)), size=8, max_skipped=0.5)
    with pytest.raises(UserError, match="to train on can be read: repair its files"):
        splits.readable()


def test_where_the_disk_fills_the_run_goes_on_in_memory(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = [served(load_lazily(source, size=16).train, epoch) for epoch in range(2)]
    told: list[str] = []
    pwrite, left = os.pwrite, iter(range(9))

    def full(*given):  # type: ignore[no-untyped-def]
        if next(left, None) is None:
            raise OSError(errno.ENOSPC, "No space left on device")
        return pwrite(*given)

    monkeypatch.setattr(os, "pwrite", full)
    data = load_lazily(source, size=16, cache=Cache(tmp_path / "cache", told.append)).train
    assert all(same(served(data, epoch), expected[epoch]) for epoch in range(2))
    assert [line for line in told if "no more" in line] == [
        "no more images are kept for the next start: No space left on device"
    ]


def test_a_cache_that_may_only_be_read_serves_what_it_has(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    cache = Cache(tmp_path / "cache", told.append)
    expected = load_lazily(source, size=16, cache=cache).train.images[:4]
    open_ = Path.open

    def refuse(path: Path, mode: str = "r", *given: int):  # type: ignore[no-untyped-def]
        if path.suffix == ".images" and "+" in mode:
            raise PermissionError(errno.EACCES, "Permission denied")
        return open_(path, mode, *given)

    monkeypatch.setattr(Path, "open", refuse)
    again = load_lazily(source, size=16, cache=cache).train
    assert told[-1].startswith("4 of 24 images" if "cat/03.png" not in again.names[:4] else "3 of 24 images")
    before = len(told)
    assert torch.equal(again.images[:4], expected)
    assert len(told) == before
    assert torch.equal(again.images[:], load_lazily(source, size=16).train.images[:])
    assert "may not be written to" in told[-1]


def test_what_is_found_in_the_file_while_memory_takes_over_is_served_from_the_file(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = Cache(tmp_path / "cache")
    expected = load_lazily(source, size=16, cache=cache).train.images[:8]
    images = load_lazily(source, size=16, cache=cache).train.images
    assert isinstance(images, Decoded)
    store, kept = images.store, images.rows[:8].numpy()
    looked = []

    def meanwhile(*given: int) -> rows.InMemory:
        looked.append(store.there(kept[4:]))  # as another thread may
        return rows.InMemory(*given)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(keeping, "InMemory", meanwhile)
    monkeypatch.setattr(os, "pwrite", full)
    assert torch.equal(images[:], load_lazily(source, size=16).train.images[:])
    assert len(looked) == 1
    assert torch.equal(images[:8], expected)


def test_a_link_that_leads_elsewhere_meanwhile_changes_nothing(tmp_path: Path) -> None:
    versions = [
        write_tree(tmp_path / f"v{i}", {f"{k}.png": encode(noise(seed=9 * i + k)) for k in range(6)}) for i in (1, 2)
    ]
    link, cache = tmp_path / "data", Cache(tmp_path / "cache")
    link.symlink_to(versions[0])
    images = load_lazily(str(link), size=16, cache=cache).train.images
    images[0]
    link.unlink()
    link.symlink_to(versions[1])
    assert torch.equal(images[:], load(str(versions[0]), size=16).train.images[:])
    for link_or_folder, version in ((link, 1), (versions[0], 0)):
        again = load_lazily(str(link_or_folder), size=16, cache=cache).train.images
        assert torch.equal(again[:], load(str(versions[version]), size=16).train.images[:])


def test_a_source_that_changes_meanwhile_is_said(source: str, tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache")
    load_lazily(source, size=16, cache=cache)
    again = load_lazily(source, size=16, cache=cache).train
    (Path(source) / "dog" / "new.png").write_bytes(GOOD["cat/00.png"])
    with pytest.raises(UserError, match="has changed while it was read: start anew"):
        again.images[:2]


def test_an_epoch_that_is_left_ends_its_threads(source: str) -> None:
    data = load_lazily(source, size=16).train
    assert isinstance(data.images, Decoded)
    batches = Loader(data, PLAN, 4, seed=5).epoch(0)
    next(batches)
    batches.close()  # type: ignore[attr-defined]
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith(("fill", "decode"))]
