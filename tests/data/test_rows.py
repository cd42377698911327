"""Images that come into memory as they are asked for, beside the tensor they stand for."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from image_files import encode, noise, plain, write_tree

from fastssl.data import plans
from fastssl.data.files import Files
from fastssl.data.images import files_of, load_all, stream
from fastssl.data.rows import Decoded, FileRows, InMemory, Rows, Undecoded, checksums, identity
from fastssl.data.sources import Entries, list_images
from fastssl.data.stream import StreamLoader
from fastssl.errors import UserError
from fastssl.eval.features import extract


@pytest.fixture
def pixels() -> torch.Tensor:
    return torch.randint(0, 256, (20, 3, 6, 6), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def files(pixels: torch.Tensor, folder: Path) -> Files:
    for i, image in enumerate(pixels):
        write_tree(folder, {f"{i:03}.ppm": b"P6 6 6 255\n" + image.permute(1, 2, 0).contiguous().numpy().tobytes()})
    return Files(list_images(folder), 0.5, "it is white")


def decoded(pixels: torch.Tensor, folder: Path) -> Decoded:
    return Decoded(files(pixels, folder), InMemory(len(pixels), 6), torch.arange(len(pixels)))


def undecoded(pixels: torch.Tensor, folder: Path) -> Undecoded:
    return Undecoded(files(pixels, folder), torch.arange(len(pixels)), 6)


@pytest.mark.parametrize("make", [decoded, undecoded])
def test_rows_are_indexed_as_their_tensor_is(
    make: Callable[[torch.Tensor, Path], FileRows], pixels: torch.Tensor, tmp_path: Path
) -> None:
    rows: Rows = make(pixels, tmp_path)
    some = torch.tensor([3, 19, 3, 0])
    for part, tensor in ((rows, pixels), (rows.subset(some), pixels[some]), (rows.subset(some[:0]), pixels[:0])):
        assert (len(part), part.shape) == (len(tensor), tensor.shape)
        assert torch.equal(part[:], tensor)
        assert torch.equal(part[1:3], tensor[1:3])
    for index in (7, -1, torch.tensor(4), some, pixels[:, 0, 0, 0] > 100):
        assert torch.equal(rows[index], pixels[index])
    with pytest.raises(IndexError):
        rows[20]
    assert torch.equal(rows.subset(some).subset(torch.tensor([1]))[:], pixels[19:20])


def test_what_is_taken_out_is_a_copy(pixels: torch.Tensor, tmp_path: Path) -> None:
    rows = decoded(pixels, tmp_path)
    rows[2:4].zero_()
    rows[5].zero_()
    assert torch.equal(rows[:], pixels)


def test_an_identity_is_that_of_the_tensor_or_of_the_files(pixels: torch.Tensor, tmp_path: Path) -> None:
    chosen = torch.tensor([4, 2])
    assert identity(pixels[chosen]) != identity(pixels[chosen.flip(0)])
    files = undecoded(pixels, tmp_path)
    assert identity(files) == identity(decoded(pixels, tmp_path))
    assert identity(files) == identity(files.subset(torch.arange(20))) != identity(files.subset(chosen))
    write_tree(tmp_path, {"000.ppm": b"of another size"})
    assert identity(Undecoded(Files(list_images(tmp_path), 0.5, ""), files.rows, 6)) != identity(files)


@pytest.mark.parametrize("make", [decoded, undecoded])
def test_the_readable_ones_are_found_by_reading_each_once(
    make: Callable[[torch.Tensor, Path], FileRows], pixels: torch.Tensor, tmp_path: Path
) -> None:
    rows = make(pixels[:4], tmp_path)
    write_tree(tmp_path, {"003.ppm": b"no image"})
    read = counted(rows.files)
    part = rows.subset(torch.tensor([3, 2, 0]))
    with pytest.warns(UserWarning, match="it is white"):
        assert part.readable().tolist() == [1, 2]
    assert rows.readable().tolist() == [0, 1, 2]
    assert sorted(read) == ["000.ppm", "001.ppm", "002.ppm", "003.ppm"]


def counted(files: Files) -> list[str]:
    """The names of the files that are read from now on."""
    read: list[str] = []
    entries = Entries.of(files.listing.entries)
    files.listing.entries = Entries(
        entries.names, entries.sizes, lambda i: (read.append(entries.names[i]), entries[i].read())[1]
    )
    return read


@pytest.mark.parametrize("size", [1, 2, 3, 6, 8])
def test_any_change_of_a_byte_changes_an_images_checksum(size: int) -> None:
    image = torch.randint(0, 256, (1, 3, size, size), dtype=torch.uint8)
    changed = image.repeat(image.numel(), 1, 1, 1)
    changed.view(image.numel(), -1).diagonal().add_(1)
    assert not bool((checksums(changed) == checksums(image)).any())


def test_images_of_inverted_or_exchanged_colours_have_checksums_of_their_own() -> None:
    images = torch.randint(0, 256, (50, 3, 8, 8), dtype=torch.uint8)
    others = torch.cat([images, 255 - images, images.flip(1), images.flip(2), images.flip(3), images.mT, images ^ 128])
    assert len(set(checksums(others).tolist())) == len(others)


def test_checksums_do_not_depend_on_how_images_lie() -> None:
    images = torch.randint(0, 256, (700, 3, 16, 16), dtype=torch.uint8)
    sums = checksums(images)
    assert torch.equal(checksums(images.contiguous(memory_format=torch.channels_last)), sums)
    assert torch.equal(torch.cat([checksums(part) for part in images.split(77)]), sums)
    assert checksums(images[:0]).shape == (0,)


def test_an_unreadable_file_is_white_and_named_once(tmp_path: Path) -> None:
    content = {f"{i}.png": encode(noise(seed=i)) for i in range(9)} | {"3.png": b"no image"}
    data = stream(str(write_tree(tmp_path, content)), size=16).train
    assert list(data.skipped) == []
    with pytest.warns(UserWarning, match=r"'3\.png' cannot be read \(not an image .*leave it out") as warned:
        white = [*data.images[2:5][1:2], *data.subset(torch.tensor([3])).images[:]]
    assert all(bool((image == 255).all()) for image in white)
    assert len(warned) == 1
    assert [item.name for item in data.skipped] == ["3.png"]


def test_a_file_that_an_engine_has_named_is_not_named_again(tmp_path: Path) -> None:
    content = {f"{i}.png": encode(noise(seed=i)) for i in range(9)} | {"3.png": b"no image"}
    data = stream(str(write_tree(tmp_path, content)), size=16).train
    with StreamLoader(files_of(data, "stream"), plans.eval(8), 3, 0) as loader:
        with pytest.warns(UserWarning, match=r"'3\.png' cannot be read .* another takes its place"):
            list(loader.epoch(0))
        assert loader.skipped == tuple(data.skipped)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert bool((data.images[3] == 255).all())
    assert [item.name for item in data.skipped] == ["3.png"]


@pytest.mark.filterwarnings("ignore:.*cannot be read")
def test_too_many_unreadable_files_are_an_error(tmp_path: Path) -> None:
    content = {f"{i}.png": b"no image" if i < 2 else plain() for i in range(9)}
    data = stream(str(write_tree(tmp_path, content)), size=16).train
    with pytest.raises(UserError, match="too many unreadable files: 2 so far, 1 of 9 allowed"):
        data.images[:]


def test_features_are_those_of_the_tensor(tmp_path: Path) -> None:
    folder = write_tree(tmp_path, {f"{i}.png": encode(noise(seed=i)) for i in range(9)})
    encoder = torch.nn.Flatten()
    tensor, files = load_all(str(folder), size=16).images, stream(str(folder), size=16).train.images
    expected = extract(encoder, tensor, size=8, device="cpu")
    assert torch.equal(extract(encoder, files, size=8, batch_size=4, device="cpu"), expected)
    with pytest.raises(ValueError, match="none of them 0"):
        extract(encoder, files[:0], size=8, device="cpu")
