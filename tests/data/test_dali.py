"""DALI's engine beside the native one, on files that are bytes in memory."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from abandoned import abandon
from dali_helpers import RAW, bare, files, needs_dali, photo, photos, pixels
from image_files import encode, plain
from PIL import Image, ImageOps
from torch import Tensor

from fastssl.data import dali, plans
from fastssl.data.dali import DaliLoader
from fastssl.data.decode import on_white
from fastssl.data.encoded import Encoded
from fastssl.data.images import ImageSet
from fastssl.data.loader import Loader, Schedule
from fastssl.data.plans import ViewPlan
from fastssl.errors import UserError


def native(images: Sequence[Image.Image], plan: ViewPlan, batch: int, epoch: int = 0) -> list[list[Tensor]]:
    """What the native loader gives; images need not be square."""
    data = ImageSet(pixels(images), None, (), tuple(map(str, range(len(images)))), "test")
    return list(Loader(data, plan, batch, seed=0).epoch(epoch))


def served(images: Sequence[Image.Image], plan: ViewPlan, batch: int, epoch: int = 0) -> list[list[Tensor]]:
    with DaliLoader(files([encode(image) for image in images]), plan, batch, 0) as loader:
        return list(loader.epoch(epoch))


def levels(a: Tensor, b: Tensor, plan: ViewPlan) -> Tensor:
    """How far two views are apart, in 1 / 255 of a channel's range."""
    return (a - b).abs() * torch.tensor(plan.std)[:, None, None] * 255


def still(plan: ViewPlan) -> ViewPlan:
    """Everything but crops: whole images at their own size."""
    alike = dict(crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0), size=48)
    return replace(plan, **alike, others=tuple(still(other) for other in plan.others))


@needs_dali
@pytest.mark.parametrize("name", plans.names())
def test_every_plan_has_the_native_engines_views(name: str) -> None:
    images, plan = photos(6), plans.get(name)(48)
    for mine, theirs in zip(served(images, bare(plan), 3), native(images, bare(plan), 3), strict=True):
        assert [view.shape for view in mine] == [view.shape for view in theirs]
        for a, b in zip(mine, theirs, strict=True):
            apart = levels(a, b, plan)
            # DALI repeats the pixels at the edges of a crop where torchvision leaves them out
            assert apart.max() <= 2
            assert apart[..., 2:-2, 2:-2].max() <= 1
            assert apart.mean() < 0.3


@needs_dali
@pytest.mark.parametrize("how", ["bilinear", "bicubic"])
@pytest.mark.parametrize(("size", "most", "average"), [(8, 33, 1.9), (32, 20, 0.7), (96, 15, 0.3)])  # as docs/data.md
def test_strongly_reduced_crops_differ_at_their_edges_alone(how: str, size: int, most: int, average: float) -> None:
    images, plan = photos(8, height=375, width=500), replace(bare(plans.simclr(size)), interpolation=how, **RAW)
    for mine, theirs in zip(served(images, plan, 4), native(images, plan, 4), strict=True):
        for a, b in zip(mine, theirs, strict=True):
            apart = levels(a, b, plan)
            assert apart[..., 2:-2, 2:-2].max() < 0.7
            assert apart.max() <= most
            assert apart.mean() < average


@needs_dali
@pytest.mark.parametrize("name", plans.names())
def test_colours_and_blur_are_the_native_engines_own(name: str) -> None:
    images, plan = photos(6, height=48, width=48), still(plans.get(name)(48))
    for mine, theirs in zip(served(images, plan, 3), native(images, plan, 3), strict=True):
        for a, b in zip(mine, theirs, strict=True):
            assert levels(a, b, plan).max() < 1e-2


@needs_dali
def test_views_of_another_type_and_layout_are_the_same_rounded() -> None:
    contents, plan = [encode(image) for image in photos(4)], plans.dino(32, local_views=1)
    with DaliLoader(files(contents), plan, 4, 0, dtype=torch.bfloat16, channels_last=True) as loader:
        (found,) = loader.epoch(0)
    (plain,) = served(photos(4), plan, 4)
    assert all(view.is_contiguous(memory_format=torch.channels_last) for view in found)
    assert all(torch.equal(view, want.bfloat16()) for view, want in zip(found, plain, strict=True))


@needs_dali
def test_whole_plans_stay_near_the_native_engines_views() -> None:
    images, plan = photos(8, height=150, width=200), plans.simclr(96)
    for mine, theirs in zip(served(images, plan, 4), native(images, plan, 4), strict=True):
        for a, b in zip(mine, theirs, strict=True):
            assert levels(a, b, plan).mean() < 1


@needs_dali
@pytest.mark.parametrize("plan", [plans.simclr(32), plans.dino(32, local_views=2)], ids=["simclr", "dino"])
def test_a_run_resumed_in_mid_epoch_sees_what_an_uninterrupted_one_sees(plan: ViewPlan) -> None:
    contents = [encode(image, "JPEG") for image in photos(14)]
    with DaliLoader(files(contents), plan, 3, seed=7, threads=2) as loader:
        first = next(loader.epoch(2))  # left in the middle
        whole = list(loader.epoch(2))
    with DaliLoader(files(contents), plan, 3, seed=7, threads=1) as loader:
        resumed = list(loader.epoch(2, start_step=2))
    assert (len(whole), len(resumed)) == (4, 2)
    for before, after in zip([first, *whole[2:]], [whole[0], *resumed], strict=True):
        assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


@needs_dali
def test_two_epochs_at_a_time_differ_and_do_not_disturb_each_other() -> None:
    with DaliLoader(files([encode(photo(0))] * 6), plans.simclr(16), 2, seed=0) as loader:  # no order tells them apart
        alone = [list(loader.epoch(epoch)) for epoch in (0, 1)]
        assert not any(torch.equal(a, b) for pair in zip(*alone, strict=True) for a, b in zip(*pair, strict=True))
        together = list(zip(loader.epoch(0), loader.epoch(1), strict=True))
    for step, pair in enumerate(together):
        for epoch, views in enumerate(pair):
            assert all(torch.equal(a, b) for a, b in zip(views, alone[epoch][step], strict=True))


@needs_dali
def test_crops_lie_in_dalis_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    places = []

    def shared(part: Any) -> Tensor:
        tensor = torch.from_dlpack(part)
        places.append((tensor.data_ptr(), part.data_ptr()))
        return tensor

    monkeypatch.setattr(dali, "from_dlpack", shared)
    with DaliLoader(files([encode(image) for image in photos(4)]), plans.simclr(16), 2, seed=0) as loader:
        assert len(list(loader.epoch(0))) == 2
    assert len(places) >= 4
    assert all(ours == dalis for ours, dalis in places)


@needs_dali
def test_ranks_see_files_of_their_own_and_draw_on_their_own() -> None:
    grey = [plain((10 * i, 10 * i, 10 * i)) for i in range(11)]
    seen = []
    for rank in (0, 1):
        with DaliLoader(files(grey), replace(plans.eval(4), **RAW), 2, 0, rank=rank, world=2) as loader:
            assert loader.steps_per_epoch == 2
            seen.append({round(float(x) * 25.5) for (view,) in loader.epoch(0) for x in view[:, 0, 0, 0]})
    assert [len(part) for part in seen] == [4, 4]
    assert not seen[0] & seen[1]
    same = [encode(photo(0))] * 4
    one, other = (next(DaliLoader(files(same), plans.simclr(16), 2, 0, rank=r, world=2).epoch(0)) for r in (0, 1))
    assert not torch.equal(one[0], other[0])


@needs_dali
@pytest.mark.filterwarnings("ignore:.*cannot be read")
def test_corrupt_files_are_named_and_replaced_and_nothing_else_changes() -> None:
    good = [encode(image, "JPEG") for image in photos(12)]
    bad = list(good)
    bad[3] = b"no image"
    bad[8] = good[8][: len(good[8]) // 2]  # its header is whole: only decoding finds out
    plan, batch = plans.simclr(24), 4
    with DaliLoader(files(good), plan, batch, 0) as loader:
        clean = list(loader.epoch(0))
    share = 2 / len(bad)
    with DaliLoader(files(bad), plan, batch, 0, max_skipped=share) as loader:
        with pytest.warns(UserWarning, match="cannot be read"):
            found = list(loader.epoch(0))
        again = list(loader.epoch(0))
    with DaliLoader(files(bad), plan, batch, 0, max_skipped=share) as other:
        resumed = list(other.epoch(0, 1))
    assert {item.name for item in loader.skipped} == {"3.jpg", "8.jpg"}
    assert all(item.reason for item in loader.skipped)
    order = dict(Schedule(12, batch, 0).chosen(0))
    for step, views in enumerate(found):
        for i, position in enumerate(order[step].tolist()):
            if position not in (3, 8):
                assert all(torch.equal(a[i], b[i]) for a, b in zip(views, clean[step], strict=True))
            assert all(bool(view[i].isfinite().all()) for view in views)
    for a, b in ((found, again), (found[1:], resumed)):
        assert all(torch.equal(x, y) for p, q in zip(a, b, strict=True) for x, y in zip(p, q, strict=True))


@needs_dali
def test_of_damaged_files_only_our_sentence_is_printed(capfd: pytest.CaptureFixture[str]) -> None:
    bad = [encode(image, form) for image in photos(3) for form in ("JPEG", "PNG", "WEBP")]
    cut = [data[: len(data) // 2] for data in bad] + [data[:60] + bytes(40) + data[100:] for data in bad]
    good = [encode(image, "JPEG") for image in photos(6)]
    with (
        DaliLoader(files(cut + good), plans.eval(8), 24, 0, max_skipped=1.0) as loader,
        pytest.warns(UserWarning, match=r"'\d+\.jpg' cannot be read \(.*\): another takes its place"),
    ):
        list(loader.epoch(0))
    assert len(loader.skipped) >= len(bad)
    assert capfd.readouterr().err == ""


@needs_dali
@pytest.mark.filterwarnings("ignore:.*cannot be read")
def test_too_many_corrupt_files_end_the_epoch() -> None:
    contents = [b"no image"] * 3 + [plain()] * 5
    with (
        DaliLoader(files(contents), plans.eval(4), 8, 0) as loader,
        pytest.raises(UserError, match="too many unreadable files: 2 so far, 1 of 8 allowed") as caught,
    ):
        list(loader.epoch(0))
    assert "\n" not in str(caught.value)
    with (
        DaliLoader(files([b"no image"] * 2), plans.eval(4), 2, 0, max_skipped=1.0) as loader,
        pytest.raises(UserError, match="none of the 2 files of a batch can be read"),
    ):
        list(loader.epoch(0))


@needs_dali
@pytest.mark.filterwarnings("ignore:.*cannot be read")
def test_mutated_files_are_served_or_named() -> None:
    rng = np.random.default_rng(0)
    contents = []
    for i in range(240):
        data = bytearray(encode(photo(i), ("JPEG", "PNG", "WEBP", "GIF")[i % 4]))
        for place in rng.integers(0, len(data), 1 + i % 5):
            data[place] = rng.integers(256)
        contents.append(bytes(data[: rng.integers(1, len(data))] if i % 3 == 0 else data))
    plan = plans.eval(8)
    with DaliLoader(files(contents), plan, 24, 0, max_skipped=1.0) as loader:
        for epoch in (0, 1):
            assert all(bool(view.isfinite().all()) for (view,) in loader.epoch(epoch))
        named = {item.name for item in loader.skipped}
    unreadable = set()
    for i, data in enumerate(contents):
        try:
            with Image.open(io.BytesIO(data)) as image:
                image.load()
        except Exception:
            unreadable.add(f"{i}.jpg")
    assert named <= unreadable  # Pillow finds damage in places that are not decoded, such as check sums
    assert len(named) >= 0.8 * len(unreadable)
    assert named


@needs_dali
def test_what_only_pillow_decodes_is_left_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    image = photo(0, height=16, width=16).quantize(16).convert("RGB")
    monkeypatch.setattr(dali, "read_header", lambda data: Encoded(data, 16, 16))
    with DaliLoader(files([encode(image, "GIF"), encode(image)]), replace(plans.eval(16), **RAW), 2, 0) as loader:
        ((view,),) = loader.epoch(0)
    assert loader.skipped == ()
    torch.testing.assert_close(255 * view, pixels([image, image]).float(), atol=1e-2, rtol=0)


def turned(form: str, orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encode(photo(0, 24, 36), form, exif=exif)


def transparent(form: str) -> bytes:
    image = photo(0, 24, 36).convert("RGBA")
    image.putalpha(image.getchannel(0))
    return encode(image, form)


@needs_dali
@pytest.mark.parametrize(
    "make",
    [
        *(lambda form=form: encode(photo(0, 24, 36), form) for form in ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "PPM")),
        *(lambda k=k: turned("JPEG", k) for k in (3, 6, 9)),
        lambda: turned("PNG", 6),
        lambda: turned("WEBP", 8),
        lambda: transparent("PNG"),
        lambda: transparent("WEBP"),
        lambda: encode(photo(0, 24, 36).convert("P"), "GIF"),
        lambda: encode(photo(0, 24, 36).convert("CMYK"), "JPEG"),
        lambda: encode(photo(0, 24, 36).convert("L"), "JPEG"),
        lambda: encode(photo(0, 24, 36).convert("1")),
        lambda: encode(Image.fromarray(np.arange(24 * 36, dtype=np.uint16).reshape(24, 36) * 70)),
    ],
)
def test_every_format_shows_what_pillow_shows(make: Callable[[], bytes]) -> None:
    data = make()
    with Image.open(io.BytesIO(data)) as opened:
        expected = on_white(ImageOps.exif_transpose(opened))
    plan = ViewPlan(size=24, crop_scale=(0.2, 0.2), **RAW)
    with DaliLoader(files([data]), plan, 1, 0) as loader:
        ((mine,),) = loader.epoch(0)
    ((theirs,),) = native([expected], plan, 1)
    assert (255 * (mine - theirs)).abs().max() <= 5


def test_what_is_missing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nvidia.dali", None)
    with pytest.raises(UserError, match=r"pip install 'fastssl\[dali\]'") as caught:
        DaliLoader(files([plain()]), plans.eval(4), 1, 0)
    assert "\n" not in str(caught.value)


@needs_dali
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_mixed_needs_a_gpu() -> None:
    with pytest.raises(UserError, match="'mixed' needs an NVIDIA GPU, and torch finds none here"):
        DaliLoader(files([plain()]), plans.eval(4), 1, 0, device="mixed")


@needs_dali
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"device": "gpu"}, "'cpu' or 'mixed'; got 'gpu'"),
        ({"max_skipped": 2.0}, "from 0 to 1; got 2.0"),
        ({"rank": 2, "world": 2}, r"rank must be in \[0, 2\)"),
        ({"threads": 0}, "threads must be 1 or more; got 0"),
        ({"world": 3}, "a batch of 2 for each of 3 processes is larger than the data set of 5 images"),
    ],
)
def test_what_cannot_be_used_is_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        DaliLoader(files([plain()] * 5), plans.eval(4), 2, 0, **settings)  # type: ignore[arg-type]


def mixed(contents: Sequence[bytes], plan: ViewPlan, **settings: Any) -> DaliLoader:
    return DaliLoader(files(contents), plan, 4, 0, device="mixed", **settings)


@pytest.mark.gpu
@needs_dali
@pytest.mark.parametrize("plan", [plans.simclr(32), plans.dino(32)], ids=["simclr", "dino"])
def test_a_gpus_views_are_near_the_cpus(plan: ViewPlan) -> None:
    contents = [encode(image, "JPEG", quality=95) for image in photos(8)]
    for asked in (bare(plan), plan):
        with DaliLoader(files(contents), asked, 4, 0) as cpu, mixed(contents, asked) as gpu:
            for mine, theirs in zip(cpu.epoch(0), gpu.epoch(0), strict=True):
                for a, b in zip(mine, theirs, strict=True):
                    assert b.is_cuda
                    assert levels(a, b.cpu(), plan).mean() < 3  # of two decoders
    with mixed(contents, plan, dtype=torch.bfloat16, channels_last=True) as low, mixed(contents, plan) as full:
        for mine, theirs in zip(full.epoch(0), low.epoch(0), strict=True):
            for a, b in zip(mine, theirs, strict=True):
                assert b.is_contiguous(memory_format=torch.channels_last)
                assert torch.equal(a.bfloat16(), b)


@pytest.mark.gpu
@needs_dali
def test_a_run_on_a_gpu_resumed_in_mid_epoch_sees_what_an_uninterrupted_one_sees() -> None:
    contents = [encode(image, "JPEG", quality=95) for image in photos(12)]
    with mixed(contents, plans.simclr(32)) as loader, mixed(contents, plans.simclr(32)) as resumed:
        whole, rest = list(loader.epoch(1)), list(resumed.epoch(1, 1))
    assert all(
        torch.equal(a, b) for one, two in zip(whole[1:], rest, strict=True) for a, b in zip(one, two, strict=True)
    )


@pytest.mark.gpu
@needs_dali
@pytest.mark.filterwarnings("ignore:.*cannot be read")
def test_corrupt_files_are_named_by_a_gpus_decoder_too() -> None:
    contents = [encode(image, "JPEG") for image in photos(12)]
    contents[5] = contents[5][: len(contents[5]) // 2]
    with mixed(contents, plans.simclr(32)) as loader:
        assert len(list(loader.epoch(0))) == 3
        assert len(loader.skipped) == 1


@needs_dali
@pytest.mark.parametrize("how", ["end", "error"])
def test_a_process_that_leaves_an_epoch_ends(how: str, tmp_path: Path) -> None:
    abandon("fastssl.data.dali", "DaliLoader", how, tmp_path)
