from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from image_files import plain, write_tar, write_tree, write_zip
from test_idx import encoded
from test_images import pets, reds

from fastssl.data.sample import load_some
from fastssl.errors import UserError


def test_some_images_are_drawn_by_the_seed(tmp_path: Path) -> None:
    source = str(write_tree(tmp_path, pets()))
    first, again, other = (load_some(source, size=4, count=6, seed=seed) for seed in (0, 0, 1))
    assert first.names == again.names == tuple(sorted(first.names))
    assert first.names != other.names
    assert (len(first), first.labels, first.classes, first.source) == (6, None, (), source)
    assert reds(first) == ["cat" in name for name in first.names]
    assert set(load_some(source, size=4, count=99, seed=0).names) == set(pets())


@pytest.mark.parametrize("pack", [write_zip, write_tar])
def test_some_images_of_an_archive_are_the_same(tmp_path: Path, pack) -> None:
    archive = load_some(str(pack(tmp_path / "pets", pets())), size=4, count=6, seed=0)
    assert reds(archive) == ["cat" in name for name in archive.names]
    assert len(archive) == 6


def test_some_images_leave_out_what_cannot_be_read(tmp_path: Path) -> None:
    found = load_some(
        str(write_tree(tmp_path, {"a.png": plain(), "b.png": b"", "c.png": b"?"})), size=4, count=3, seed=0
    )
    assert found.names == ("a.png",)
    assert [file.name for file in found.skipped] == ["b.png", "c.png"]
    with pytest.raises(UserError, match=r"no readable image among 1 of .*b\.png"):
        load_some(str(write_tree(tmp_path / "bad", {"b.png": b""})), size=4, count=3, seed=0)


def test_some_images_of_idx_files(tmp_path: Path) -> None:
    pixels = np.arange(10, dtype=np.uint8)[:, None, None] * np.ones((1, 4, 4), np.uint8)
    (tmp_path / "train-images-idx3-ubyte").write_bytes(encoded(pixels))
    found = load_some(str(tmp_path), size=4, count=3, seed=0)
    assert (len(found), found.labels, found.classes) == (3, None, ())
    assert [int(name[-1]) for name in found.names] == found.images[:, 0, 0, 0].tolist()


def test_a_source_without_images_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no image in"):
        load_some(str(tmp_path), size=4, count=3, seed=0)
