"""What is kept of a set serves for that set when it has changed, and for its copies: little is decoded anew."""

from __future__ import annotations

import errno
import gc
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from image_files import plain, write_tar, write_tree, write_zip
from kept_helpers import PETS, Told, Work, assert_same_splits, files

from fastssl.data import kept, sources
from fastssl.data.images import Cache, load, load_lazily


def changed_behind_its_time(folder: Path) -> None:
    path = folder / "cat" / "0.png"
    before = path.stat()
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def touched(folder: Path) -> None:
    os.utime(folder / "cat" / "0.png", ns=(0, 0))


def changed_in_place(folder: Path) -> None:
    path = folder / "cat" / "0.png"
    before = path.stat()
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1))


def exchanged(folder: Path) -> None:
    one, other = folder / "cat" / "0.png", folder / "cat" / "1.png"
    assert one.stat().st_size == other.stat().st_size
    content = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(content)


def all_touched(folder: Path) -> None:
    for path in folder.rglob("*.png"):
        path.chmod(0o600)


# and how many files are then read, and decoded
CHANGES: dict[str, tuple[Callable[[Path], object], tuple[int, int]]] = {
    "touched": (touched, (1, 0)),
    "all touched": (all_touched, (12, 0)),
    "changed in place": (changed_in_place, (1, 1)),
    "changed, its time set back": (changed_behind_its_time, (1, 1)),
    "added": (lambda folder: (folder / "dog" / "new.png").write_bytes(plain("green")), (1, 1)),
    "removed": (lambda folder: (folder / "dog" / "0.png").unlink(), (0, 0)),
    "renamed": (lambda folder: (folder / "dog" / "0.png").rename(folder / "dog" / "zero.png"), (1, 0)),
    "moved to another class": (lambda folder: (folder / "dog" / "0.png").rename(folder / "cat" / "zero.png"), (1, 0)),
    "class renamed": (lambda folder: (folder / "dog").rename(folder / "hound"), (6, 0)),
    "class copied": (lambda folder: shutil.copytree(folder / "dog", folder / "hound"), (6, 0)),
    "replaced": (lambda folder: (folder / "dog" / "0.png").write_bytes(plain("green")), (1, 1)),
    "two exchanged": (exchanged, (2, 2)),
}


@pytest.mark.parametrize("block", [1, 5, 99])
@pytest.mark.parametrize(("change", "cost"), CHANGES.values(), ids=list(CHANGES))
def test_of_a_folder_that_changed_only_that_is_read(
    change, cost, block: int, tmp_path: Path, cache: Cache, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept, "_BLOCK", block)
    folder = write_tree(tmp_path / "pets", PETS)
    load(str(folder), size=8, cache=cache)
    change(folder)
    expected = load(str(folder), size=8)
    told.clear()
    work = Work(monkeypatch)
    assert_same_splits(load(str(folder), size=8, cache=cache), expected)
    assert work.spent() == cost
    assert told("keeping") == 1
    assert len(files(cache)) == 1  # in place of what is of no more use
    assert_same_splits(load(str(folder), size=8, cache=cache), expected)
    assert work.spent() == (0, 0)
    assert told(", from ") == 1


def renamed(folder: Path) -> Path:
    return folder.rename(folder.with_name("animals"))


def zipped(folder: Path) -> Path:
    return write_zip(folder.with_name("animals.zip"), PETS)


def copied(folder: Path) -> Path:
    return Path(shutil.copytree(folder, folder.with_name("animals")))


def copied_with_another(folder: Path) -> Path:
    return write_tree(copied(folder), {"cat/new.png": plain("green")})


def copied_and_changed(folder: Path) -> Path:
    changed_behind_its_time(copied(folder))
    return folder.with_name("animals")


@pytest.mark.parametrize(
    ("copy", "cost"),
    [
        (renamed, (12, 0)),
        (zipped, (12, 0)),
        (copied, (12, 0)),
        (copied_with_another, (13, 1)),
        (copied_and_changed, (12, 1)),
    ],
)
def test_what_is_kept_of_a_set_serves_for_a_copy_whose_files_hold_the_same(
    copy, cost, tmp_path: Path, cache: Cache, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_tree(tmp_path / "pets", PETS)
    load(str(folder), size=8, cache=cache)
    (path,) = files(cache)
    source = str(copy(folder))
    expected = load(source, size=8)
    told.clear()
    work = Work(monkeypatch)
    assert_same_splits(load(source, size=8, cache=cache), expected)
    assert work.spent() == cost
    assert told(f"12 are carried over from {path}") == 1
    assert_same_splits(load(source, size=8, cache=cache), expected)
    assert work.spent() == (0, 0)


def test_progress_is_told_while_images_are_copied(
    tmp_path: Path, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept, "_BLOCK", 5)
    folder = write_tree(tmp_path / "pets", PETS)
    load(str(folder), size=8, cache=cache)
    (folder / "dog" / "new.png").write_bytes(plain("green"))
    at: list[tuple[int, int]] = []
    load_lazily(str(folder), size=8, cache=cache, progress=lambda *done: at.append(done))
    assert at == [(5, 13), (10, 13), (13, 13)]


def test_what_was_carried_over_and_not_read_yet_is_carried_on(
    tmp_path: Path, cache: Cache, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_tree(tmp_path / "pets", PETS)
    load(str(folder), size=8, cache=cache)
    work = Work(monkeypatch)
    for _ in range(2):
        all_touched(folder)
        load_lazily(str(folder), size=8, cache=cache).train.images[:2]
    assert work.spent() == (4, 0)
    folder = renamed(folder)
    load_lazily(str(folder), size=8, cache=cache).train.images[:2]
    assert work.spent() == (2, 0)
    told.clear()
    assert_same_splits(load(str(folder), size=8, cache=cache), load(str(folder), size=8))
    assert told("12 images of 8 x 8, 2.3 kB, from ") == 1
    assert work.spent() == (10 + 12, 12)


def test_damage_of_what_is_carried_over_is_noticed(
    tmp_path: Path, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_tree(tmp_path / "pets", PETS)
    for change, cost in ((touched, (2, 1)), (all_touched, (12, 1))):
        load(str(folder), size=8, cache=cache)
        (path,) = files(cache)
        whole = path.read_bytes()
        path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))  # of the last image
        change(folder)
        expected = load(str(folder), size=8)
        with monkeypatch.context() as patches:
            work = Work(patches)
            assert_same_splits(load(str(folder), size=8, cache=cache), expected)
        assert work.spent() == cost


@pytest.mark.parametrize("content", [b"", b"no file of the cache", b"fastssl images\r\n" + bytes(80)])
def test_other_files_in_the_cache_are_no_hindrance(content: bytes, tmp_path: Path, cache: Cache, told: Told) -> None:
    write_tree(cache.folder, {"other-8px-00000000.images": content})
    source = str(write_tree(tmp_path / "pets", PETS))
    assert_same_splits(load(source, size=8, cache=cache), load(source, size=8))
    assert told("damaged") == 0


def test_images_of_another_size_do_not_serve(tmp_path: Path, cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    load(str(write_tree(tmp_path / "pets-8px-small", PETS)), size=4, cache=cache)
    work = Work(monkeypatch)
    load(str(write_tree(tmp_path / "pets", PETS)), size=8, cache=cache)
    assert work.spent() == (12, 12)


def kept_then_renamed(folder: Path, cache: Cache, told: Told) -> tuple[Path, str, Cache]:
    """The file of the cache that has a set's images, that set under another name, and the cache with room for one."""
    load(str(write_tree(folder, PETS)), size=8, cache=cache)
    (path,) = files(cache)
    told.clear()
    return path, str(renamed(folder)), replace(cache, limit=path.stat().st_size)


def test_where_there_is_no_room_for_both_the_set_that_was_copied_is_dropped_and_serves_all_the_same(
    tmp_path: Path, cache: Cache, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, source, limited = kept_then_renamed(tmp_path / "pets", cache, told)
    expected = load(source, size=8)
    work = Work(monkeypatch)
    assert_same_splits(load(source, size=8, cache=limited), expected)
    assert work.spent() == (12, 0)
    assert told(f"dropped {path}") == 1
    assert [path.name[:7] for path in files(cache)] == ["animals"]


def test_where_the_disk_has_no_room_for_both_the_set_that_was_copied_is_let_go_of(
    tmp_path: Path, cache: Cache, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, source, limited = kept_then_renamed(tmp_path / "pets", cache, told)
    expected, reserve = load(source, size=8), kept._reserve

    def full_as_long_as_it_is_mapped(*args: Any) -> None:
        if any(type(thing) is kept.Kept and thing.place == path for thing in gc.get_objects()):
            raise OSError(errno.ENOSPC, "No space left on device")
        reserve(*args)

    gc.collect()
    monkeypatch.setattr(kept, "_reserve", full_as_long_as_it_is_mapped)
    found = load(source, size=8, cache=limited)
    assert_same_splits(found, expected)
    assert (told("not kept"), [path.name[:7] for path in files(cache)]) == (0, ["animals"])


@pytest.mark.parametrize("pack", [write_zip, write_tar])
def test_of_an_archive_that_grew_only_what_is_new_is_decoded(
    pack, tmp_path: Path, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = pack(tmp_path / "pets", PETS)
    load(str(path), size=8, cache=cache)
    pack(path, PETS | {"dog/new.png": plain("green")})
    expected = load(str(path), size=8)
    work = Work(monkeypatch)
    assert_same_splits(load(str(path), size=8, cache=cache), expected)
    assert work.spent() == (13, 1)


def test_without_a_second_time_the_contents_of_a_sample_tell(
    tmp_path: Path, cache: Cache, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "_times", lambda status: str(status.st_mtime_ns))  # as on FAT
    folder = write_tree(tmp_path / "pets", PETS)
    load(str(folder), size=8, cache=cache)
    changed_behind_its_time(folder)
    expected = load(str(folder), size=8)
    told.clear()
    work = Work(monkeypatch)
    assert_same_splits(load(str(folder), size=8, cache=cache), expected)
    assert told("keeping") == 1
    assert work.spent() == (12, 1)


def test_what_one_process_has_found_to_be_the_same_another_need_not_read(
    tmp_path: Path, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_tree(tmp_path / "pets", PETS)
    load(str(folder), size=8, cache=cache)
    all_touched(folder)
    one, other = (load_lazily(str(folder), size=8, cache=cache).train for _ in range(2))  # as of two processes
    work = Work(monkeypatch)
    expected = load_lazily(str(folder), size=8).train.images[:]
    work.spent()
    for start in range(0, len(one), 2):
        assert torch.equal(one.images[start : start + 2], expected[start : start + 2])
        assert torch.equal(other.images[start : start + 2], expected[start : start + 2])
    assert work.spent() == (len(one), 0)


def test_files_that_changed_back_are_what_they_were(tmp_path: Path, cache: Cache) -> None:
    folder = write_tree(tmp_path / "pets", PETS)
    path, before = folder / "cat" / "0.png", (folder / "cat" / "0.png").read_bytes()
    for content in (before, plain("green"), before, b"no image", plain("red")):
        path.write_bytes(content)
        assert_same_splits(load(str(folder), size=8, cache=cache), load(str(folder), size=8))


def test_a_set_that_cannot_be_written_anew_is_left_as_it_was(
    tmp_path: Path, cache: Cache, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_tree(tmp_path / "pets", PETS)
    load(str(folder), size=8, cache=cache)
    (path,) = files(cache)
    whole = path.read_bytes()
    (folder / "cat" / "new.png").write_bytes(plain())

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patches:
        patches.setattr(os, "fsync", full)
        told.clear()
        assert_same_splits(load(str(folder), size=8, cache=cache), load(str(folder), size=8))
        assert told("not kept for the next start") == 1
    assert files(cache) == [path]
    assert path.read_bytes() == whole
    work = Work(monkeypatch)
    load(str(folder), size=8, cache=cache)
    assert work.spent() == (1, 1)
