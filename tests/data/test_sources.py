from __future__ import annotations

import io
import os
import tarfile
import zipfile
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from image_files import plain, write_tar, write_tree, write_zip

from fastssl.data import sources
from fastssl.data.decode import UnreadableError
from fastssl.data.sources import find_files, list_images, stamp
from fastssl.errors import UserError

FILES = {"b/2.PNG": b"two", "a/1.jpg": b"one", "a/ü ö.webp": b"three", "b/notes.txt": b"no"}
HIDDEN = {".hidden/1.png": b"x", "a/.2.png": b"x", "__MACOSX/a/._1.jpg": b"x"}
IMAGES = {"a/1.jpg": b"one", "a/ü ö.webp": b"three", "b/2.PNG": b"two"}


def contents(path: Path) -> dict[str, bytes]:
    with closing(list_images(path)) as listing:
        return {entry.name: entry.read() for entry in listing.entries}


def test_a_folder_lists_its_images_in_order_of_their_names(tmp_path: Path) -> None:
    found = contents(write_tree(tmp_path, FILES | HIDDEN))
    assert found == IMAGES
    assert list(found) == sorted(found)


def test_a_hidden_folder_can_be_given_itself(tmp_path: Path) -> None:
    assert contents(write_tree(tmp_path / ".cache", FILES)) == IMAGES


def test_a_zip_lists_its_images(tmp_path: Path) -> None:
    found = contents(write_zip(tmp_path / "images.zip", FILES | HIDDEN))
    assert found == IMAGES
    assert list(found) == sorted(found)


@pytest.mark.parametrize("compression", ["", "gz", "bz2", "xz"])
def test_a_tar_lists_its_images(tmp_path: Path, compression: str) -> None:
    assert contents(write_tar(tmp_path / "images", FILES | HIDDEN, compression)) == IMAGES


def test_a_tar_packed_from_dot_is_read(tmp_path: Path) -> None:
    assert contents(write_tar(tmp_path / "images.tar", {"./a/1.png": b"x"})) == {"./a/1.png": b"x"}


def test_backslashes_of_a_zip_separate_folders(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "images.zip", {"a/1.png": b"x"})
    path.write_bytes(path.read_bytes().replace(b"a/1.png", b"a\\1.png"))
    assert contents(path) == {"a/1.png": b"x"}


def test_of_two_entries_of_one_name_the_last_counts(tmp_path: Path) -> None:
    path = tmp_path / "images.tar"
    with tarfile.open(path, "w") as archive:
        for content in (b"old", b"new"):
            member = tarfile.TarInfo("1.png")
            member.size = 3
            archive.addfile(member, io.BytesIO(content))
    assert contents(path) == {"1.png": b"new"}


def test_nothing_of_an_archive_is_written_to_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    names = ["../evil.png", str(tmp_path / "absolute.png"), "plain.png"]
    assert len(contents(write_tar(tmp_path / "evil.tar", dict.fromkeys(names, b"x")))) == 3
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["evil.tar", "here"]


def test_links_inside_a_tar_are_skipped_and_named(tmp_path: Path) -> None:
    path = tmp_path / "images.tar"
    with tarfile.open(path, "w") as archive:
        link = tarfile.TarInfo("passwd.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    with closing(list_images(path)) as listing:
        assert len(listing.entries) == 0
        assert [item.name for item in listing.skipped] == ["passwd.png"]


def test_links_in_a_folder_are_followed_once(tmp_path: Path) -> None:
    root = write_tree(tmp_path / "root", {"a/1.png": b"x"})
    outside = write_tree(tmp_path / "outside", {"2.png": b"y"})
    (root / "b").symlink_to(outside)
    (root / "a" / "loop").symlink_to(root)
    (root / "again").symlink_to(root / "a")
    assert contents(root) == {"a/1.png": b"x", "b/2.png": b"y"}


def test_broken_links_and_special_files_are_unreadable(tmp_path: Path) -> None:
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere")
    (tmp_path / "self.png").symlink_to(tmp_path / "self.png")
    os.mkfifo(tmp_path / "pipe.png")
    with closing(list_images(tmp_path)) as listing:
        assert [entry.name for entry in listing.entries] == ["gone.png", "pipe.png", "self.png"]
        for entry in listing.entries:
            with pytest.raises(UnreadableError, match=r"link|regular"):
                entry.read()


def test_folders_and_files_that_may_not_be_read_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tree(tmp_path, {"a/1.png": b"x", "b/2.png": b"y"})

    def refusing(function: Callable[..., object]) -> Callable[..., object]:
        def refuse(path: Path, *args: object) -> object:
            if path.name in ("a", "2.png"):
                raise PermissionError(13, "Permission denied")
            return function(path, *args)

        return refuse

    monkeypatch.setattr(os, "scandir", refusing(os.scandir))
    monkeypatch.setattr(Path, "open", refusing(Path.open))
    listing = list_images(tmp_path)
    assert [(item.name, item.reason) for item in listing.skipped] == [("a", "Permission denied")]
    with pytest.raises(UnreadableError, match="Permission denied"):
        listing.entries[0].read()


def test_a_name_that_is_no_text_can_be_printed(tmp_path: Path) -> None:
    try:
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.png")).write_bytes(b"x")
    except OSError:
        pytest.skip("this file system takes no such names")
    (name,) = contents(tmp_path)
    assert name.encode("utf-8").decode() == "�.png"


@pytest.mark.parametrize("pack", [write_zip, write_tar])
def test_files_too_large_are_refused_unread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pack) -> None:
    monkeypatch.setattr(sources, "MAX_FILE_BYTES", 10)
    files = {"large.png": b"x" * 11, "small.png": b"x" * 10}
    for path in (pack(tmp_path / "archive", files), write_tree(tmp_path / "folder", files)):
        with closing(list_images(path)) as listing:
            entries = {entry.name: entry for entry in listing.entries}
            assert len(entries["small.png"].read()) == 10
            with pytest.raises(UnreadableError, match="11 bytes"):
                entries["large.png"].read()


def test_a_damaged_entry_of_a_zip_is_unreadable(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "images.zip", {"1.png": b"content", "2.png": b"another"})
    path.write_bytes(path.read_bytes().replace(b"content", b"c0ntent"))
    with closing(list_images(path)) as listing:
        first, second = listing.entries
        assert second.read() == b"another"
        with pytest.raises(UnreadableError, match="CRC"):
            first.read()


def test_an_encrypted_entry_is_unreadable(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "images.zip", {"1.png": b"content"})
    data = bytearray(path.read_bytes())
    data[6] |= 1
    data[data.index(b"PK\1\2") + 8] |= 1
    path.write_bytes(data)
    with closing(list_images(path)) as listing, pytest.raises(UnreadableError, match="password"):
        listing.entries[0].read()


@pytest.mark.parametrize("compression", ["", "gz", "bz2", "xz"])
def test_a_truncated_tar_is_refused_whole(tmp_path: Path, compression: str) -> None:
    path = write_tar(tmp_path / "images.tar", {f"{i}.png": os.urandom(5000) for i in range(4)}, compression)
    path.write_bytes(path.read_bytes()[:12_000])
    with pytest.raises(UserError, match=r"again|no whole") as caught:
        list_images(path)
    assert "\n" not in str(caught.value)


def test_a_truncated_zip_and_other_files_are_refused(tmp_path: Path) -> None:
    whole = write_zip(tmp_path / "images.zip", {"1.png": plain()}).read_bytes()
    for name, content in (("cut.zip", whole[:-30]), ("notes.txt", b"text"), ("empty.tar", b"")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match="no folder and no whole zip or tar"):
            list_images(tmp_path / name)


def test_what_is_not_there_is_said_to_be_missing(tmp_path: Path) -> None:
    for missing in (tmp_path / "nowhere", str(tmp_path / "nowhere.tar.gz"), "x" * 5000, ""):
        with pytest.raises(UserError, match=r"no file or folder '.*': give the path of a folder, zip or tar of images"):
            list_images(missing)


def test_a_path_may_be_a_string(tmp_path: Path) -> None:
    write_tree(tmp_path, FILES)
    assert [entry.name for entry in list_images(str(tmp_path)).entries] == list(IMAGES)


def test_an_archive_is_closed_with_its_listing(tmp_path: Path) -> None:
    listing = list_images(write_zip(tmp_path / "images.zip", {"1.png": b"x"}))
    assert (len(listing), repr(listing)) == (1, "Listing(1 file, 0 skipped)")
    listing.close()
    with pytest.raises((UnreadableError, ValueError)):
        listing.entries[0].read()
    assert zipfile.is_zipfile(tmp_path / "images.zip")


def test_sizes_are_those_of_the_files(tmp_path: Path) -> None:
    for path in (
        write_tree(tmp_path / "a", FILES),
        write_zip(tmp_path / "a.zip", FILES),
        write_tar(tmp_path / "a.tar", FILES),
    ):
        with closing(list_images(path)) as listing:
            assert {entry.name: entry.size for entry in listing.entries} == {k: len(v) for k, v in IMAGES.items()}


def test_a_stamp_tells_of_every_change_of_an_image_and_of_nothing_else(tmp_path: Path) -> None:
    root = write_tree(tmp_path / "root", FILES)
    path = root / "a" / "1.jpg"
    stamps = [stamp(root)]
    (root / "b" / "notes.txt").write_bytes(b"other notes")
    (root / ".hidden").mkdir()
    assert stamp(root) == stamps[0]
    path.write_bytes(b"new one")
    stamps.append(stamp(root))
    os.utime(path, ns=(0, 0))
    stamps.append(stamp(root))
    path.rename(root / "a" / "2.jpg")
    stamps.append(stamp(root))
    (root / "a" / "2.jpg").unlink()
    stamps.append(stamp(root))
    (root / "a" / "gone.jpg").symlink_to("nowhere")
    stamps.append(stamp(root))
    assert len(set(stamps)) == len(stamps)


@pytest.mark.parametrize("place", [0, -1])
def test_a_stamp_of_an_archive_tells_of_its_ends_its_size_and_its_time(tmp_path: Path, place: int) -> None:
    path = tmp_path / "a.zip"
    content = bytearray(300_000)
    path.write_bytes(content)
    os.utime(path, ns=(0, 0))
    before = stamp(path)
    assert stamp(path) == before
    content[place] = 1
    path.write_bytes(content)
    os.utime(path, ns=(0, 0))
    changed = stamp(path)
    path.write_bytes(content + b"x")
    os.utime(path, ns=(0, 0))
    longer = stamp(path)
    os.utime(path, ns=(0, 1))
    assert len({before, changed, longer, stamp(path)}) == 4


def test_files_of_other_kinds_are_found_likewise(tmp_path: Path) -> None:
    write_tree(tmp_path, {"b/2.WAV": b"", "a/1.wav": b"", "c d/ü.flac": b"", "b/2.txt": b"", ".hidden/1.wav": b""})
    found, skipped = find_files(tmp_path, {".wav", ".flac"})
    names = ["a/1.wav", "b/2.WAV", "c d/ü.flac"]
    assert (found, skipped) == ([(name, tmp_path / name) for name in names], [])
