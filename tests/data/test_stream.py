"""The streaming engine beside the native one, on files that are bytes in memory."""

from __future__ import annotations

import io
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from abandoned import abandon
from dali_helpers import RAW, files, photo, photos, pixels
from image_files import encode, noise, plain, write_tar, write_tree, write_zip
from PIL import Image, ImageOps
from torch import Tensor

from fastssl.data import plans
from fastssl.data import stream as streams
from fastssl.data.decode import on_white
from fastssl.data.files import Files
from fastssl.data.images import ImageSet, files_of, load, stream
from fastssl.data.loader import Loader, Schedule
from fastssl.data.plans import ViewPlan
from fastssl.data.sources import Entry, Listing, list_images
from fastssl.data.stream import StreamLoader
from fastssl.errors import UserError

PLAN = plans.simclr(24)


def native(images: Sequence[Image.Image], plan: ViewPlan, batch: int) -> list[list[Tensor]]:
    """What the native loader gives; images need not be square."""
    data = ImageSet(pixels(images), None, (), tuple(map(str, range(len(images)))), "test")
    return list(Loader(data, plan, batch, seed=0).epoch(0))


def served(contents: Sequence[bytes], plan: ViewPlan, batch: int, **settings: int) -> list[list[Tensor]]:
    with StreamLoader(files(contents), plan, batch, 0, **settings) as loader:
        return list(loader.epoch(0))


def same(a: Sequence[Sequence[Tensor]], b: Sequence[Sequence[Tensor]]) -> bool:
    pairs = [(x, y) for p, q in zip(a, b, strict=True) for x, y in zip(p, q, strict=True)]
    return bool(pairs) and all(torch.equal(x, y) for x, y in pairs)


@pytest.mark.parametrize("name", plans.names())
def test_every_plan_has_the_native_engines_views(name: str) -> None:
    images, plan = photos(7), plans.get(name)(48)
    mine, theirs = served([encode(image) for image in images], plan, 3), native(images, plan, 3)
    for a, b in zip(mine, theirs, strict=True):
        for x, y in zip(a, b, strict=True):
            torch.testing.assert_close(x, y, atol=1e-4, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("channels_last", [False, True])
def test_views_of_another_type_or_layout_are_the_same_rounded(dtype: torch.dtype, channels_last: bool) -> None:
    plan = plans.dino(32, local_views=1)
    with StreamLoader(files(shapes(5)), plan, 5, 0, dtype=dtype, channels_last=channels_last, threads=2) as loader:
        (found,) = loader.epoch(0)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    assert all(view.is_contiguous(memory_format=layout) for view in found)
    (plain,) = served(shapes(5), plan, 5)
    assert same([found], [[view.to(dtype) for view in plain]])


def test_crops_are_of_the_files_own_pixels(tmp_path: Path) -> None:
    image = noise(64, 64)  # of which a copy of 8 pixels has nothing left
    data = stream(str(write_tree(tmp_path, {"1.png": encode(image)})), size=8).train
    plan = ViewPlan(size=8, crop_scale=(1 / 64, 1 / 64), **RAW)
    with StreamLoader(streams_files(data), plan, 1, 0) as loader:
        ((view,),) = loader.epoch(0)
    assert (255 * view).std() > 60
    assert data.images[:].float().std() < 20


def streams_files(data: ImageSet) -> Files:
    return files_of(data, "stream")


def shapes(count: int = 12) -> list[bytes]:
    """Files of images of many shapes."""
    return [encode(photo(i, 24 + 12 * (i % 5), 36 + 12 * (i % 3)), "JPEG") for i in range(count)]


def test_any_number_of_threads_and_of_images_at_once_gives_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = served(shapes(), PLAN, 4, threads=1, ahead=1)
    assert same(served(shapes(), PLAN, 4, threads=5, ahead=3), expected)
    for at_once in (1, 3000, 1 << 40):
        monkeypatch.setattr(streams, "_PIXELS_AT_ONCE", at_once)
        assert same(served(shapes(), PLAN, 4, threads=2), expected)


def test_parts_are_all_images_in_order_and_no_larger_than_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "_PIXELS_AT_ONCE", 100)
    images = [streams._Image(i, b"", 10, width) for i, width in enumerate((3, 7, 1, 50, 2, 2, 2, 2, 2, 2))]
    parts = streams._parts(images)
    assert [image for part in parts for image in images[part]] == images
    assert [len(images[part]) for part in parts] == [2, 1, 1, 5, 1]


@pytest.mark.parametrize("plan", [plans.simclr(32), plans.dino(32, local_views=2)], ids=["simclr", "dino"])
def test_a_run_resumed_in_mid_epoch_sees_what_an_uninterrupted_one_sees(plan: ViewPlan) -> None:
    with StreamLoader(files(shapes(14)), plan, 3, seed=7, threads=2) as loader:
        first = next(loader.epoch(2))  # left in the middle
        whole = list(loader.epoch(2))
    with StreamLoader(files(shapes(14)), plan, 3, seed=7, threads=1) as loader:
        resumed = list(loader.epoch(2, start_step=2))
    assert (len(whole), len(resumed)) == (4, 2)
    assert same([first, *whole[2:]], [whole[0], *resumed])


def test_two_epochs_at_a_time_do_not_disturb_each_other() -> None:
    with StreamLoader(files(shapes(6)), PLAN, 2, seed=0) as loader:
        alone = [list(loader.epoch(epoch)) for epoch in (0, 1)]
        together = list(zip(loader.epoch(0), loader.epoch(1), strict=True))
    assert same([one for one, _ in together], alone[0])
    assert same([other for _, other in together], alone[1])
    assert not same(*alone)


def test_ranks_see_files_of_their_own_and_draw_on_their_own() -> None:
    grey = [plain((10 * i, 10 * i, 10 * i)) for i in range(11)]
    seen = []
    for rank in (0, 1):
        with StreamLoader(files(grey), replace(plans.eval(4), **RAW), 2, 0, rank=rank, world=2) as loader:
            assert loader.steps_per_epoch == 2
            seen.append({round(float(x) * 25.5) for (view,) in loader.epoch(0) for x in view[:, 0, 0, 0]})
    assert [len(part) for part in seen] == [4, 4]
    assert not seen[0] & seen[1]


@pytest.mark.filterwarnings("ignore:.*cannot be read")
def test_corrupt_files_are_named_and_replaced_and_nothing_else_changes() -> None:
    good = [encode(image, "JPEG") for image in photos(12)]
    bad = list(good)
    bad[3] = b"no image"
    bad[8] = good[8][: len(good[8]) // 2]  # its header is whole: only decoding finds out
    clean, share = served(good, PLAN, 4), 2 / len(bad)
    with StreamLoader(files(bad), PLAN, 4, 0, max_skipped=share) as loader:
        with pytest.warns(UserWarning, match="cannot be read"):
            found = list(loader.epoch(0))
        again = list(loader.epoch(0))
    with StreamLoader(files(bad), PLAN, 4, 0, max_skipped=share, threads=1) as other:
        resumed = list(other.epoch(0, 1))
    assert {item.name for item in loader.skipped} == {"3.jpg", "8.jpg"}
    assert all(item.reason for item in loader.skipped)
    order = dict(Schedule(12, 4, 0).chosen(0))
    for step, views in enumerate(found):
        for i, position in enumerate(order[step].tolist()):
            if position not in (3, 8):
                assert all(torch.equal(a[i], b[i]) for a, b in zip(views, clean[step], strict=True))
            assert all(bool(view[i].isfinite().all()) for view in views)
    assert same(found, again)
    assert same(found[1:], resumed)


@pytest.mark.filterwarnings("ignore:.*cannot be read")
def test_too_many_corrupt_files_end_the_epoch() -> None:
    contents = [b"no image"] * 3 + [plain()] * 5
    with pytest.raises(UserError, match=r"too many unreadable files: \d so far, 1 of 8 allowed") as caught:
        served(contents, plans.eval(4), 8)
    assert "\n" not in str(caught.value)
    with (
        StreamLoader(files([b"no image"] * 2), plans.eval(4), 2, 0, max_skipped=1.0) as loader,
        pytest.raises(UserError, match="none of the 2 files of a batch can be read"),
    ):
        list(loader.epoch(0))


def turned(form: str, orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encode(photo(0, 24, 36), form, exif=exif)


def turned_behind_its_pixels() -> bytes:
    """A PNG whose EXIF stands behind its pixels, so that its header tells other sides than it has."""
    data = turned("PNG", 6)
    start = data.index(b"eXIf") - 4
    end = start + 12 + int.from_bytes(data[start : start + 4], "big")
    last = data.index(b"IEND") - 4
    return data[:start] + data[end:last] + data[start:end] + data[last:]


def transparent(form: str) -> bytes:
    image = photo(0, 24, 36).convert("RGBA")
    image.putalpha(image.getchannel(0))
    return encode(image, form)


@pytest.mark.parametrize(
    "make",
    [
        *(lambda form=form: encode(photo(0, 24, 36), form) for form in ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "PPM")),
        *(lambda k=k: turned("JPEG", k) for k in (1, 2, 3, 4, 5, 6, 7, 8, 9)),
        *(lambda form=form: turned(form, 6) for form in ("PNG", "WEBP", "TIFF")),
        turned_behind_its_pixels,
        lambda: transparent("PNG"),
        lambda: transparent("WEBP"),
        lambda: encode(photo(0, 24, 36).convert("P"), "GIF"),
        lambda: encode(photo(0, 24, 36).convert("CMYK"), "JPEG"),
        lambda: encode(photo(0, 24, 36).convert("L"), "JPEG"),
        lambda: encode(Image.fromarray(np.arange(24 * 36, dtype=np.uint16).reshape(24, 36) * 70)),
    ],
)
def test_every_format_shows_what_pillow_shows(make: Callable[[], bytes]) -> None:
    data = make()
    with Image.open(io.BytesIO(data)) as opened:
        expected = on_white(ImageOps.exif_transpose(opened))
    plan = ViewPlan(size=24, crop_scale=(0.2, 0.2), **RAW)
    ((mine,),) = served([data], plan, 1)
    ((theirs,),) = native([expected], plan, 1)
    torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=0)


class Counted:
    """Files whose reads are counted, and can be held up."""

    def __init__(self, count: int) -> None:
        self.read: list[int] = []
        self.go = threading.Event()
        self.go.set()
        self.listing = Listing([Entry(f"{i}.png", lambda i=i: self._content(i)) for i in range(count)])

    def _content(self, i: int) -> bytes:
        self.go.wait(60)
        self.read.append(i)
        return plain((i, i, i))

    def settle(self, count: int) -> int:
        """How many are read, once it is ``count`` or more and no more come, or after a while."""
        deadline = time.monotonic() + 20
        while len(self.read) < count and time.monotonic() < deadline:
            time.sleep(0.005)
        time.sleep(0.1)
        return len(self.read)


def working() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith(("make", "batch"))]


@pytest.mark.parametrize("ahead", [1, 3])
def test_batches_are_made_ahead_and_no_more_than_asked(ahead: int) -> None:
    counted = Counted(100)
    with StreamLoader(counted.listing, plans.eval(4), 5, 0, threads=2, ahead=ahead) as loader:
        batches = loader.epoch(0)
        assert counted.read == []
        for step in range(4):
            next(batches)  # and now they are trained on
            assert counted.settle(5 * (step + 1 + ahead)) == 5 * (step + 1 + ahead)
        counted.go.clear()
        next(batches)  # what is made already needs no file
        counted.go.set()


def test_what_fails_on_a_thread_fails_the_epoch_and_ends_the_threads() -> None:
    def fail() -> bytes:
        raise RuntimeError("out of order")

    entries = [Entry("a.png", plain), Entry("b.png", fail)]
    with StreamLoader(Listing(entries), plans.eval(4), 1, 0) as loader:
        with pytest.raises(RuntimeError, match="out of order"):
            list(loader.epoch(0))
        assert working() == []


def test_an_epoch_that_is_left_ends_its_threads() -> None:
    counted = Counted(400)
    loader = StreamLoader(counted.listing, plans.eval(4), 50, 0, threads=2)
    batches = loader.epoch(0)
    next(batches)
    batches.close()  # type: ignore[attr-defined]
    assert working() == []
    other = loader.epoch(0)
    next(other)
    loader.close()  # as after an interrupt, while somebody still holds the epoch
    assert working() == []
    with pytest.raises(Exception, match=r"shutdown|^$"):
        list(other)


@pytest.mark.skipif(sys.platform != "linux", reason="threads have priorities of their own on Linux")
def test_its_threads_give_way_to_the_others() -> None:
    found = []

    def content() -> bytes:
        found.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))
        return plain()

    before = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
    with StreamLoader(Listing([Entry("a.png", content)] * 4), plans.eval(4), 2, 0) as loader:
        list(loader.epoch(0))
    assert set(found) == {min(19, before + 10)}
    assert os.getpriority(os.PRIO_PROCESS, threading.get_native_id()) == before


@pytest.mark.parametrize("pack", [write_zip, write_tar, write_tree, lambda path, what: zipped(path, what)])
def test_any_source_is_read_from_many_threads(pack, tmp_path: Path) -> None:
    content = {f"{i:03}.png": os.urandom(3000 + 7 * i) for i in range(150)}
    listing = list_images(pack(tmp_path / "files", content))
    wrong: list[str] = []

    def read_all(seed: int) -> None:
        for i in np.random.default_rng(seed).permutation(len(listing.entries)).tolist():
            entry = listing.entries[i]
            if entry.read() != content[entry.name] or entry.size != len(content[entry.name]):
                wrong.append(entry.name)

    threads = [threading.Thread(target=read_all, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    listing.close()
    assert wrong == []


def zipped(path: Path, content: dict[str, bytes]) -> Path:
    import zipfile

    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in content.items():
            archive.writestr(name, data)
    return path


@pytest.mark.parametrize("pack", [write_zip, write_tar, write_tree])
def test_a_source_is_split_and_labelled_as_in_memory(pack, tmp_path: Path) -> None:
    content = {f"{kind}/{i}.png": encode(noise(seed=i)) for kind in ("dog", "cat") for i in range(10)}
    source = str(pack(tmp_path / "pets", content))
    streamed, loaded = stream(source, size=8, seed=1), load(source, size=8, seed=1)
    for a, b in ((streamed.train, loaded.train), (streamed.test, loaded.test)):
        assert a is not None
        assert b is not None
        assert (a.names, a.classes) == (b.names, b.classes)
        assert torch.equal(a.labels, b.labels)
        assert torch.equal(a.images[:], b.images[:])
    mine = StreamLoader(streams_files(streamed.train), PLAN, 4, 0)
    theirs = StreamLoader(streams_files(loaded.train), PLAN, 4, 0)
    assert same(list(mine.epoch(0)), list(theirs.epoch(0)))
    mine.close()
    assert streamed.train.images[0].shape == (3, 8, 8)  # still read, for the scores


def test_nothing_is_decoded_to_begin_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = str(write_tree(tmp_path, {f"{i}.png": b"" for i in range(20)}))
    monkeypatch.setattr(Path, "open", None)
    assert len(stream(source, size=8).train) == 20


def test_what_can_only_be_read_forwards_is_refused_by_name(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "pets.tar.gz", {"1.png": plain()}, "gz")
    with pytest.raises(
        UserError, match=r"pets\.tar\.gz' is a compressed tar, and streaming reads single files .* unpack"
    ):
        stream(str(path), size=8)
    with pytest.raises(UserError, match=r"a compressed tar can only be read forwards, .*: unpack it, or pack it again"):
        StreamLoader(list_images(path), PLAN, 1, 0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"threads": 0}, "threads must be 1 or more; got 0"),
        ({"ahead": 0}, "ahead must be 1 or more; got 0"),
        ({"max_skipped": 2.0}, "from 0 to 1; got 2.0"),
        ({"rank": 2, "world": 2}, r"rank must be in \[0, 2\)"),
        ({"world": 3}, "a batch of 2 for each of 3 processes is larger than the data set of 5 images"),
    ],
)
def test_what_cannot_be_used_is_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        StreamLoader(files([plain()] * 5), plans.eval(4), 2, 0, **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("how", ["end", "error"])
def test_a_process_that_leaves_an_epoch_ends(how: str, tmp_path: Path) -> None:
    abandon("fastssl.data.stream", "StreamLoader", how, tmp_path)
