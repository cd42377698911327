from __future__ import annotations

import json
import sys
import tarfile
from pathlib import Path

import pytest
from image_files import encode, noise, plain, write_tar, write_tree, write_zip
from shard_files import grey, grey_shards, write_shard

from fastssl.data import shards
from fastssl.data.shards import list_shards, pack, scan, write_index
from fastssl.errors import UserError

wds = pytest.importorskip("webdataset", reason="the package webdataset is not installed")


def names(path: Path) -> list[str]:
    return [member.name for member in scan(path)[0]]


def test_a_sample_is_what_the_webdataset_package_takes_for_one(tmp_path: Path) -> None:
    files = {
        "a/1.jpg": b"x",
        "a/1.cls": b"0",
        "a/2.txt": b"no image",
        "a/3.json": b"{}",
        "a/3.PNG": b"x",
        "a.b/4.webp": b"x",
        "a.b/4.png": b"a second image",
        "5.seg.png": b"a part of another name",
        "5.jpeg": b"x",
        ".hidden": b"x",
        "README": b"x",
    }
    path = write_shard(tmp_path / "1.tar", files)
    assert names(path) == ["a/1.jpg", "a/3.PNG", "a.b/4.webp", "5.jpeg"]
    grouped = list(wds.WebDataset(str(path), shardshuffle=False, empty_check=False))
    with_image = [sample["__key__"] for sample in grouped if set(sample) & set(shards.KEYS)]
    assert with_image == ["a/1", "a/3", "a.b/4", "5"]


def test_where_the_bytes_of_a_sample_are(tmp_path: Path) -> None:
    path = write_shard(tmp_path / "1.tar", {f"{'long' * 40}{i}.png": bytes([i]) * (i * 300) for i in range(5)})
    content = path.read_bytes()
    members, problem = scan(path)
    assert problem is None
    assert [content[m.offset : m.offset + m.size] for m in members] == [bytes([i]) * (i * 300) for i in range(5)]


def test_shards_are_found_by_folder_and_by_braces(tmp_path: Path) -> None:
    grey_shards(tmp_path, 3, 4, 5)
    whole = list_shards(str(tmp_path))
    assert (whole.counts, len(whole)) == ((3, 4, 5), 12)
    assert repr(whole) == "Shards(3 shards, 12 samples, 0 skipped)"
    assert [path.name for path in whole.paths] == ["00.tar", "01.tar", "02.tar"]
    assert list_shards(f"{tmp_path}/{{00..02}}.tar") == whole
    assert list_shards([f"{tmp_path}/{{02,00}}.tar"]).counts == (5, 3)
    assert (
        list_shards(tmp_path) == list_shards([tmp_path / "00.tar", tmp_path / "01.tar", f"{tmp_path}/02.tar"]) == whole
    )


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("", "no .tar file in '.*': give a folder of shards .pack makes them of images., or paths such as"),
        ("/nowhere", "no file or folder '.*/nowhere': give a folder of shards"),
        ("/{0..9}.tar", "none of the 10 files is there of '.*': give a folder of shards"),
        ("/{0..2.tar", "has a brace without its other half"),
        ("/{00,00}.tar", "names a shard twice"),
        ("/9.tar", "no file or folder '.*/9.tar': give a folder of shards"),
    ],
)
def test_sources_without_shards_are_refused(source: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message) as caught:
        list_shards(str(tmp_path) + source)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("compression", ["gz", "bz2", "xz"])
def test_compressed_shards_are_refused_as_such(compression: str, tmp_path: Path) -> None:
    path = write_tar(tmp_path / f"0.tar.{compression}", {"0.png": plain()}, compression)
    with pytest.raises(UserError, match="are compressed, so that no sample can be reached: decompress them"):
        list_shards(tmp_path)
    with pytest.raises(UserError, match="compressed, so that no sample in it can be reached: decompress it"):
        list_shards(path)
    with pytest.raises(UserError, match=r"no .tar file in an empty list"):
        list_shards([])


def test_a_shard_is_not_compressed_because_its_first_file_is_named_so(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "0.tar", {"BZh_video1.png": plain(), "BZh9_video2.png": plain()})
    assert len(list_shards(path)) == 2


def test_damaged_shards_are_named_and_give_what_can_be_read(tmp_path: Path) -> None:
    grey_shards(tmp_path, 4, 4, 4, 4, 4)
    content = (tmp_path / "00.tar").read_bytes()
    assert len(content) == 10240
    (tmp_path / "00.tar").write_bytes(content[: 2 * 1024 + 520])  # within the bytes of the third image
    (tmp_path / "01.tar").write_bytes(content[: 3 * 1024])  # between two images
    (tmp_path / "02.tar").write_bytes(content[:1024] + b"x" * 512 + content[1536:])  # the second header
    (tmp_path / "03.tar").write_bytes(b"no tar at all")
    found = list_shards(str(tmp_path))
    assert dict(zip([path.name for path in found.paths], found.counts, strict=True)) == {
        "00.tar": 2,
        "01.tar": 3,
        "02.tar": 1,
        "04.tar": 4,
    }
    assert [item.name for item in found.skipped] == ["00.tar", "01.tar", "02.tar", "03.tar"]
    assert [item.reason.split(" (")[1] for item in found.skipped] == [f"after {i} samples)" for i in (2, 3, 1, 0)]


def test_too_many_lost_shards_are_an_error(tmp_path: Path) -> None:
    grey_shards(tmp_path, 1, 1, 1)
    for name in ("00.tar", "01.tar"):
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(UserError, match="too many shards that cannot be read: 2 of 3, 1 allowed"):
        list_shards(str(tmp_path))
    assert len(list_shards(str(tmp_path), max_skipped=1.0)) == 1


def test_a_file_of_negative_size_does_not_go_on_for_ever(tmp_path: Path) -> None:
    path = write_shard(tmp_path / "1.tar", {"0.png": b"x", "1.png": b"x"})
    content = bytearray(path.read_bytes())
    header = tarfile.TarInfo("1.png")
    header.size = -1536
    content[1024:1536] = header.tobuf(tarfile.GNU_FORMAT)
    path.write_bytes(content)
    members, problem = scan(path)
    assert len(members) <= 2
    assert problem is not None


def test_the_index_is_trusted_while_a_shard_has_its_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    grey_shards(tmp_path, 3, 4)
    assert write_index(tmp_path) == tmp_path / "index.json"
    known = list_shards(str(tmp_path))
    scanned: list[str] = []
    monkeypatch.setattr(shards, "scan", lambda path: scanned.append(path.name) or ([], "scanned"))
    assert list_shards(str(tmp_path)) == known
    with (tmp_path / "01.tar").open("ab") as file:
        file.write(bytes(512))
    assert list_shards(str(tmp_path)).counts == (3,)
    assert scanned == ["01.tar"]


def test_a_shard_that_the_index_lists_and_that_is_gone_is_named(tmp_path: Path) -> None:
    grey_shards(tmp_path, 1, 2, 3)
    write_index(tmp_path)
    (tmp_path / "01.tar").unlink()
    found = list_shards(tmp_path)
    assert [path.name for path in found.paths] == ["00.tar", "02.tar"]
    assert [(item.name, item.reason) for item in found.skipped] == [
        ("01.tar", "No such file or directory (after 0 samples)")
    ]
    (tmp_path / "02.tar").unlink()
    with pytest.raises(UserError, match="too many shards that cannot be read: 2 of 3, 1 allowed"):
        list_shards(tmp_path)
    write_index(tmp_path)  # of what there is
    assert list_shards(tmp_path).skipped == ()


def test_an_index_may_list_what_lies_elsewhere(tmp_path: Path) -> None:
    grey_shards(tmp_path, 1)
    urls = ["https://example.org/01.tar", "../02.tar", "README"]
    entries = [{"url": url, "nsamples": 1, "filesize": 1} for url in urls]
    (tmp_path / "index.json").write_text(json.dumps({"shardlist": entries}))
    found = list_shards(tmp_path)
    assert (found.counts, found.skipped) == ((1,), ())


@pytest.mark.parametrize("content", ["", "{}", '{"shardlist": 3}', '{"shardlist": [{"url": "00.tar"}]}', "\0\xff"])
def test_an_index_that_cannot_be_read_is_named(content: str, tmp_path: Path) -> None:
    grey_shards(tmp_path, 3)
    (tmp_path / "index.json").write_text(content)
    found = list_shards(str(tmp_path))
    assert found.counts == (3,)
    assert [item.name for item in found.skipped] == ["index.json"]


def test_damaged_shards_are_not_indexed(tmp_path: Path) -> None:
    grey_shards(tmp_path, 3)
    (tmp_path / "01.tar").write_bytes(b"x" * 512)
    with pytest.raises(UserError, match=r"01.tar' cannot be indexed"):
        write_index(tmp_path)
    assert not (tmp_path / "index.json").exists()


def photos() -> dict[str, bytes]:
    files = {
        f"{kind}/{i}.{form}": encode(noise(seed=i), form)
        for kind in ("cat", "dog")
        for i, form in enumerate(("PNG", "JPEG", "WEBP"))
    }
    return files | {"dog/9.gif": encode(noise().quantize(8), "GIF"), "cat/bad.png": b"no image"}


@pytest.mark.parametrize("write", [write_tree, write_zip, write_tar])
def test_packed_images_are_read_by_the_webdataset_package(write, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    source = write(tmp_path / "source", photos())
    with pytest.warns(UserWarning, match="cannot be read|left out of") as said:
        found = pack(source, tmp_path / "out", per_shard=3, progress=lambda *at: seen.append(at))
    assert {item.filename for item in said} == {__file__}
    named, sum_up = [str(item.message) for item in said]
    assert named == "'cat/bad.png' cannot be read (not an image in a format that can be read): the shards leave it out"
    assert sum_up == f"left out of the shards of {str(source)!r}: 1 file"
    assert (found.counts, [item.name for item in found.skipped]) == ((3, 3, 1), ["cat/bad.png"])
    assert seen == [(i, 8) for i in range(1, 9)]
    samples = list(wds.WebDataset([str(path) for path in found.paths], shardshuffle=False).decode())
    assert [sample["__key__"] for sample in samples] == [f"{i:08}" for i in range(7)]
    by_name = {sample["json"]["name"]: sample for sample in samples}
    assert sorted(by_name) == sorted(set(photos()) - {"cat/bad.png"})
    for name, sample in by_name.items():
        kind = name.split("/")[0]
        assert (sample["json"]["class"], sample["cls"]) == (kind, ["cat", "dog"].index(kind))
    assert list(by_name) != sorted(by_name)
    raw = {m.name: m for path in found.paths for m in scan(path)[0]}
    assert {name.rpartition(".")[2] for name in raw} == {"png", "jpeg", "webp"}


@pytest.mark.filterwarnings("ignore:.*(cannot be read|left out of)")
def test_packing_depends_on_its_arguments_alone(tmp_path: Path) -> None:
    source = str(write_tree(tmp_path / "source", photos()))
    written = [
        [path.read_bytes() for path in pack(source, tmp_path / out, per_shard=4, seed=seed).paths]
        for out, seed in (("a", 0), ("b", 0), ("c", 1))
    ]
    assert written[0] == written[1] != written[2]
    listed = json.loads((tmp_path / "a" / "index.json").read_text())["shardlist"]
    assert [entry["nsamples"] for entry in listed] == [4, 3]


def test_a_compressed_tar_is_packed_as_it_lies(tmp_path: Path) -> None:
    source = write_tar(tmp_path / "source.tar.gz", {f"{i}.png": grey(i) for i in (3, 1, 2)}, "gz")
    (path,) = pack(str(source), tmp_path / "out").paths
    content = path.read_bytes()
    assert [content[m.offset : m.offset + m.size] for m in scan(path)[0]] == [grey(i) for i in (3, 1, 2)]


def test_what_cannot_be_packed_is_refused(tmp_path: Path) -> None:
    source = str(write_tree(tmp_path / "source", {"1.png": plain(), "2.png": plain()}))
    with pytest.raises(UserError, match="per_shard must be at least 1; got 0"):
        pack(source, tmp_path / "out", per_shard=0)
    pack(source, tmp_path / "out")
    with pytest.raises(UserError, match="has shards already"):
        pack(source, tmp_path / "out")
    (tmp_path / "nothing").mkdir()
    with pytest.raises(UserError, match=r"no image in '.*nothing' \(no file ends in .*\): give a folder, zip or tar"):
        pack(tmp_path / "nothing", tmp_path / "other")
    with pytest.raises(UserError, match=r"no file or folder '.*nowhere': give the path of a folder, zip or tar"):
        pack(tmp_path / "nowhere", tmp_path / "other")
    with pytest.raises(UserError, match="no readable image"):
        pack(str(write_tree(tmp_path / "empty", {"1.png": b"x"})), tmp_path / "other")
    assert not list(tmp_path.glob("other/*.tar"))


def test_what_is_missing_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "webdataset", None)
    with pytest.raises(UserError, match=r"pip install 'fastssl\[webdataset\]'") as caught:
        list_shards(f"{tmp_path}/{{0..1}}.tar")
    assert "\n" not in str(caught.value)
