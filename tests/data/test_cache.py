"""Decoded images kept on disk: what is found is what was kept, and what is not right is not found."""

from __future__ import annotations

import errno
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import IO

import numpy as np
import pytest
import torch
from image_files import encode, noise, plain, write_tar, write_tree, write_zip
from kept_helpers import PETS, Told, Work, assert_same, assert_same_splits, files

from fastssl.data import cache as caches
from fastssl.data import kept as keeping
from fastssl.data.images import Cache, Splits, load, load_all, load_lazily
from fastssl.data.rows import Decoded
from fastssl.errors import UserError


@pytest.mark.parametrize("given", [False, True], ids=["drawn split", "given split"])
@pytest.mark.parametrize("pack", [write_tree, write_zip, write_tar, lambda path, what: write_tar(path, what, "gz")])
def test_a_second_start_reads_no_image(
    pack, given: bool, tmp_path: Path, cache: Cache, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = PETS | {"cat/bad.png": b"no image"}
    if given:
        content = {f"train/{name}": data for name, data in content.items()} | {"test/dog/0.png": plain()}
    source = str(pack(tmp_path / "pets", content))
    expected = load(source, size=8)
    first = load(source, size=8, cache=cache)
    assert told("keeping 1") == 1
    work = Work(monkeypatch)
    again = load(source, size=8, cache=cache)
    assert [Path(name).name for name in work.read] == ["bad.png"]  # which is tried again each time
    assert told(" images of 8 x 8, 2.") == 1
    for splits in (first, again):
        assert_same_splits(splits, expected)
        assert isinstance(splits.train.images, Decoded)
    assert_same_splits(load(source, size=8, seed=3, cache=cache), load_uncached(monkeypatch, source, seed=3))


def load_uncached(monkeypatch: pytest.MonkeyPatch, source: str, seed: int) -> Splits:
    monkeypatch.undo()
    return load(source, size=8, seed=seed)


def test_a_file_for_each_size_and_none_for_each_seed_or_command(tmp_path: Path, cache: Cache) -> None:
    source = str(write_tree(tmp_path / "pets", PETS))
    for seed in (0, 1):
        load(source, size=8, seed=seed, cache=cache)
    load_all(source, size=8, cache=cache)
    assert len(files(cache)) == 1
    load(source, size=4, cache=cache)
    assert len(files(cache)) == 2
    assert all(path.name.startswith(("pets-4px-", "pets-8px-")) for path in files(cache))


def test_images_beside_a_given_split_are_kept_for_who_wants_them(tmp_path: Path, cache: Cache) -> None:
    names = ("train/a/1.png", "train/b/1.png", "test/a/1.png", "val/b/1.png")
    source = str(write_tree(tmp_path / "pets", {name: encode(noise(seed=i)) for i, name in enumerate(names)}))
    for _ in range(2):
        assert_same(load_all(source, size=8, cache=cache), load_all(source, size=8))
        assert_same_splits(load(source, size=8, cache=cache), load(source, size=8))
    assert len(files(cache)) == 2


@pytest.mark.parametrize("pack", [write_zip, write_tar])
def test_an_archive_that_changed_is_read_anew(pack, tmp_path: Path, cache: Cache, told: Told) -> None:
    path = pack(tmp_path / "pets", PETS)
    load(str(path), size=8, cache=cache)
    before = path.stat()
    pack(path, {name: encode(noise(seed=40 + i)) for i, name in enumerate(PETS)})
    assert path.stat().st_size == before.st_size
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))  # what only its bytes tell
    told.clear()
    assert_same_splits(load(str(path), size=8, cache=cache), load(str(path), size=8))
    assert told("keeping") == 1


def test_what_another_decoder_made_is_read_anew(
    tmp_path: Path, cache: Cache, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = str(write_tree(tmp_path / "pets", PETS))
    load(source, size=8, cache=cache)
    monkeypatch.setattr(keeping, "decoder", lambda: "Pillow 99")
    told.clear()
    work = Work(monkeypatch)
    load(source, size=8, cache=cache)
    assert told("keeping") == 1
    assert work.spent() == (12, 12)


def test_any_damage_is_noticed_and_repaired(tmp_path: Path, cache: Cache, told: Told) -> None:
    source = str(write_tree(tmp_path / "pets", PETS))
    load(source, size=8, cache=cache)
    expected = load(source, size=8)
    (path,) = files(cache)
    whole = path.read_bytes()
    filled = [i for i, byte in enumerate(whole) if byte or i >= 4096]  # the others fill up a page
    places = [*filled[:80], *filled[80 :: len(filled) // 40], len(whole) - 1]
    damaged = [whole[:i] + bytes([whole[i] ^ 1]) + whole[i + 1 :] for i in places]
    damaged += [whole[:length] for length in (0, 1, 15, 16, 40, 100, 4095, 4096, len(whole) - 1)]
    damaged += [whole + b"x", b"\0" * len(whole), whole[:4096] + bytes(len(whole) - 4096)]
    for content in damaged:
        path.write_bytes(content)
        told.clear()
        assert_same_splits(load(source, size=8, cache=cache), expected)
        assert told(f"{path} is damaged (") == 1
        assert path.read_bytes() == whole


def test_two_images_that_change_places_are_damage(tmp_path: Path, cache: Cache, told: Told) -> None:
    source = str(write_tree(tmp_path / "pets", PETS))
    load(source, size=8, cache=cache)
    (path,) = files(cache)
    whole, row = path.read_bytes(), 3 * 8 * 8
    path.write_bytes(whole[: -2 * row] + whole[-row:] + whole[-2 * row : -row])
    told.clear()
    load(source, size=8, cache=cache)
    assert told("is damaged (2 images)") == 1
    assert path.read_bytes() == whole


def test_without_room_the_run_goes_on_and_says_why(tmp_path: Path, cache: Cache, told: Told) -> None:
    source = str(write_tree(tmp_path / "pets", PETS))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4000, before[1]))
    try:
        found = load(source, size=32, cache=cache)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert_same_splits(found, load(source, size=32))
    assert files(cache) == []
    (line,) = told
    assert line.startswith(f"the images are not kept for the next start: cannot write {cache.folder}/pets-32px-")
    assert line.endswith("free some space")


def test_a_folder_that_cannot_be_made_is_said(tmp_path: Path, told: Told) -> None:
    (tmp_path / "file").touch()
    source = str(write_tree(tmp_path / "pets", PETS))
    found = load(source, size=8, cache=Cache(tmp_path / "file" / "cache", told.append))
    assert_same_splits(found, load(source, size=8))
    (line,) = told
    assert line.startswith(f"the images are not kept for the next start: cannot write {tmp_path}/file/cache/pets-8px-")


def test_a_file_that_may_not_be_read_is_left_alone(
    tmp_path: Path, cache: Cache, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = str(write_tree(tmp_path / "pets", PETS))
    expected = load(source, size=8, cache=cache)
    (path,) = files(cache)
    open_ = Path.open

    def refuse(file: Path, *args: str) -> object:
        if file == path:
            raise PermissionError(13, "Permission denied")
        return open_(file, *args)

    monkeypatch.setattr(Path, "open", refuse)
    told.clear()
    assert_same_splits(load(source, size=8, cache=cache), expected)
    assert f"{path} cannot be read (Permission denied): reading the images anew" in told
    assert path.exists()


def test_images_are_taken_out_of_pages_that_processes_share(tmp_path: Path, cache: Cache) -> None:
    found = load_all(str(write_tree(tmp_path / "pets", PETS)), size=8, cache=cache)
    (path,) = files(cache)
    before = path.read_bytes()
    assert str(path) in Path("/proc/self/maps").read_text()
    found.images[:].fill_(7)
    assert path.read_bytes() == before


def test_too_many_unreadable_files_are_refused_as_without_a_cache(tmp_path: Path, cache: Cache) -> None:
    source = str(write_tree(tmp_path / "pets", PETS | {f"{i}.png": b"no image" for i in range(3)}))
    assert len(load_all(source, size=8, max_skipped=0.5, cache=cache)) == 12
    for _ in range(2):
        with pytest.raises(UserError, match="too many unreadable files: 2 so far, 1 of 15 allowed"):
            load_all(source, size=8, cache=cache)
    assert len(load_all(source, size=8, max_skipped=0.5, cache=cache).skipped) == 3


def test_idx_files_are_read_as_they_are(tmp_path: Path, cache: Cache) -> None:
    header = bytes((0, 0, 8, 3)) + np.array((4, 5, 5), ">u4").tobytes()
    (tmp_path / "train-images-idx3-ubyte").write_bytes(header + bytes(100))
    assert len(load_all(str(tmp_path), size=8, cache=cache)) == 4
    assert not cache.folder.exists()


def test_the_embedded_set_is_kept_too(cache: Cache, told: Told) -> None:
    assert_same_splits(load("clipart", size=16, cache=cache), load("clipart", size=16))
    assert told("keeping 2,327 images of 16 x 16, 1.8 MB, in") == 1
    assert files(cache)[0].name.startswith("clipart-16px-")


STARTED = """
import sys
from pathlib import Path
from fastssl.data.images import Cache, load_all
from fastssl.data.rows import checksums

cache = Cache(Path(sys.argv[2]), lambda line: print(line.split()[0]))
print(checksums(load_all(sys.argv[1], size=64, cache=cache).images[:]).sum().item())
"""


def test_processes_that_start_together_fill_one_file(tmp_path: Path) -> None:
    content = {f"{i}.png": encode(noise(64, 64, seed=i)) for i in range(200)}
    source = str(write_tree(tmp_path / "noise", content))
    command = [sys.executable, "-c", STARTED, source, str(tmp_path / "cache")]
    started = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate(timeout=120)[0].splitlines() for process in started]
    assert {process.returncode for process in started} == {0}
    assert len({lines[-1] for lines in said}) == 1
    assert sum("keeping" in lines for lines in said) == 1
    assert [path.suffix for path in (tmp_path / "cache").iterdir()] == [".images"]


def test_what_a_killed_process_left_half_written_is_removed(tmp_path: Path, cache: Cache) -> None:
    source = write_tree(tmp_path / "pets", PETS)
    place = cache.place(source, 8, "all")
    half, others = place.with_name(f".{place.name}.77.tmp"), place.with_name(".others-8px-00000000.images.77.tmp")
    for path in (half, others):
        write_tree(cache.folder, {path.name: b"fastssl"})
    load(str(source), size=8, cache=cache)
    assert files(cache) == sorted((place, others))


def test_where_files_cannot_be_locked_each_decodes_for_itself(
    tmp_path: Path, cache: Cache, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise NotImplementedError("no flock here")

    monkeypatch.setattr(caches.FileLock, "acquire", refuse)
    source = str(write_tree(tmp_path / "pets", PETS))
    load(source, size=8, cache=cache)
    assert told("keeping") == 1


@pytest.mark.parametrize("name", ["a b/ü.d", "x" * 200, "...", "-"])
def test_any_name_of_a_source_gives_a_name_of_a_file(name: str, tmp_path: Path, cache: Cache) -> None:
    source = str(write_tree(tmp_path / "in" / name, PETS))
    load(source, size=8, cache=cache)
    assert len(files(cache)) == 1
    assert len(files(cache)[0].name) < 80


def test_sources_of_one_name_do_not_share(tmp_path: Path, cache: Cache) -> None:
    for i, folder in enumerate(("a", "b")):
        load(str(write_tree(tmp_path / folder / "pets", {"1.png": encode(noise(seed=i))})), size=8, cache=cache)
    assert len(files(cache)) == 2


def test_a_missing_source_is_refused_as_ever(cache: Cache) -> None:
    with pytest.raises(UserError, match="no file or folder"):
        load("nowhere.zip", size=8, cache=cache)


def test_a_start_reads_the_head_and_nothing_else(tmp_path: Path, cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    source = str(write_tree(tmp_path / "pets", PETS))
    load(source, size=8, cache=cache)
    checked: list[int] = []
    sums = keeping._sums
    monkeypatch.setattr(keeping, "_sums", lambda images, *args: (checked.append(len(images)), sums(images, *args))[1])
    again = load_lazily(source, size=8, cache=cache).train
    assert checked == []
    again.images[torch.tensor([3, 1])]
    again.images[torch.tensor([1, 5])]
    assert checked == [2, 1]


def test_sets_that_were_not_used_for_longest_are_dropped_for_want_of_room(
    tmp_path: Path, cache: Cache, told: Told
) -> None:
    source = {name: str(write_tree(tmp_path / name, PETS)) for name in "abcd"}
    for age, name in enumerate("abc"):
        load(source[name], size=8, cache=cache)
        os.utime(cache.place(Path(source[name]), 8, "all"), ns=(0, age))
    size = files(cache)[0].stat().st_size
    assert cache.usage() == f"{cache.folder}: 3 sets of images, 19.2 kB; no limit"
    load(source["a"], size=8, cache=cache)  # now used last
    limited = replace(cache, limit=3 * size)
    told.clear()
    load(source["d"], size=8, cache=limited)
    assert told(f"dropped {cache.place(Path(source['b']), 8, 'all')}, 6.4 kB") == 1
    assert [path.name[0] for path in files(cache)] == ["a", "c", "d"]
    assert limited.usage().endswith("; at most 19.2 kB")


def test_a_start_that_only_reads_keeps_to_the_limit_too(tmp_path: Path, cache: Cache, told: Told) -> None:
    source = {name: str(write_tree(tmp_path / name, PETS)) for name in "abcd"}
    for age, name in enumerate("abcd"):
        load(source[name], size=8, cache=cache)
        os.utime(cache.place(Path(source[name]), 8, "all"), ns=(0, age))
    size = files(cache)[0].stat().st_size
    in_use = load(source["b"], size=8, cache=cache)
    os.utime(cache.place(Path(source["b"]), 8, "all"), ns=(0, 0))
    told.clear()
    load(source["a"], size=8, cache=replace(cache, limit=2 * size))
    assert [line.split(",")[0] for line in told if line.startswith("dropped")] == [
        f"dropped {cache.place(Path(source[name]), 8, 'all')}" for name in "cd"
    ]
    assert [path.name[0] for path in files(cache)] == ["a", "b"]
    told.clear()
    load(source["a"], size=8, cache=replace(cache, limit=size))
    assert told("more than --cache_limit: what is in use is not dropped") == 1
    assert_same_splits(in_use, load(source["b"], size=8))
    del in_use
    load(source["a"], size=8, cache=replace(cache, limit=400))  # which that set alone is beyond
    assert [path.name[0] for path in files(cache)] == ["a"]
    assert told(f"dropped {cache.place(Path(source['b']), 8, 'all')}") == 1
    load(source["a"], size=8, cache=replace(cache, limit=400))
    assert told("the cache takes 6.0 kB more than --cache_limit: what is in use is not dropped") == 1


@contextmanager
def gone(path: Path) -> Iterator[None]:
    path.unlink()
    yield


@contextmanager
def another_in_its_place(path: Path) -> Iterator[None]:
    path.with_suffix(".new").write_bytes(path.read_bytes())
    path.with_suffix(".new").replace(path)
    yield


@contextmanager
def being_dropped(path: Path) -> Iterator[None]:
    with path.open("r+b") as file:
        assert keeping.hold(file, alone=True)
        yield
        path.unlink()


@pytest.mark.parametrize("first", [True, False], ids=["made", "found"])
@pytest.mark.parametrize("meanwhile", [gone, another_in_its_place, being_dropped])
def test_a_file_that_another_process_drops_before_it_is_held_is_not_used(
    meanwhile: Callable[[Path], AbstractContextManager[None]],
    first: bool,
    tmp_path: Path,
    cache: Cache,
    told: Told,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source = str(write_tree(tmp_path / "pets", PETS))
    expected, hold = load(source, size=8), keeping.hold
    if not first:
        load(source, size=8, cache=cache)
    told.clear()

    def late(file: IO[bytes]) -> bool:
        monkeypatch.setattr(keeping, "hold", hold)
        with meanwhile(cache.place(Path(source), 8, "all")):
            return hold(file)

    monkeypatch.setattr(keeping, "hold", late)
    found = load(source, size=8, cache=cache)
    assert_same_splits(found, expected)
    assert told("was dropped by another process") == first
    assert len(files(cache)) == (meanwhile is another_in_its_place or not first)


def test_where_files_cannot_be_locked_none_is_dropped(
    tmp_path: Path, cache: Cache, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    fcntl = pytest.importorskip("fcntl")

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    first, second = (str(write_tree(tmp_path / name, PETS)) for name in "ab")
    load(first, size=8, cache=cache)
    (kept,) = files(cache)
    monkeypatch.setattr(fcntl, "flock", refuse)
    load(second, size=8, cache=replace(cache, limit=kept.stat().st_size))
    assert files(cache) == [kept]
    assert told("they would take") == 1


def test_a_set_in_use_is_not_dropped(tmp_path: Path, cache: Cache, told: Told) -> None:
    used, other = (str(write_tree(tmp_path / name, PETS)) for name in ("used", "other"))
    in_use = load(used, size=8, cache=cache)
    limited = replace(cache, limit=files(cache)[0].stat().st_size)
    told.clear()
    expected = load(other, size=8)
    assert_same_splits(load(other, size=8, cache=limited), expected)
    (line,) = told
    assert line.startswith(
        "the images are not kept for the next start: they would take 6.4 kB, and --cache_limit leaves 0.0 kB"
    )
    assert [path.name[:4] for path in files(cache)] == ["used"]
    assert_same_splits(in_use, load(used, size=8))
    del in_use
    assert_same_splits(load(other, size=8, cache=limited), expected)
    assert [path.name[:5] for path in files(cache)] == ["other"]
    load(used, size=8, cache=replace(cache, limit=1))  # which nothing would be within, so nothing is dropped
    assert [path.name[:5] for path in files(cache)] == ["other"]
