"""The benchmarks of shards, videos and recordings: every provider reads all there is."""

from __future__ import annotations

import functools

import pytest
from other_libraries import load_or_skip

from benchmarks.data import audio, from_files, video, webdataset
from benchmarks.harness import Work
from fastssl.data import plans


@pytest.mark.parametrize("make", [webdataset.by_shard_loader, webdataset.by_webdataset])
def test_a_call_makes_every_view_of_every_sample(make, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("webdataset", reason="the package webdataset is not installed")
    if make is webdataset.by_webdataset:
        load_or_skip("torchvision.transforms.v2")
    for module in (webdataset, from_files):
        monkeypatch.setattr(module, "BATCH", 4)
    plan = plans.dino(32, local_views=2)
    work = make(plan, 16)
    assert work() == work() == 4 * plan.total


@pytest.mark.parametrize("provider", ["ours_of_file", "from_the_start", "whole_file"])
def test_a_call_decodes_every_clip_of_a_file(provider: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("av", reason="PyAV is not installed")
    for name, value in (("HEIGHT", 48), ("WIDTH", 64), ("CLIPS", 3), ("KEYFRAMES", 20)):
        monkeypatch.setattr(video, name, value)
    video.file.cache_clear()
    work = getattr(video, provider)()
    assert work() == work() == 3 * video.FRAMES
    video.file.cache_clear()


@pytest.mark.parametrize("workers", [None, 0, 2])
def test_a_call_decodes_every_folder_of_frames(workers: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(video, "CLIPS", 3)
    video.frame_folders.cache_clear()
    work = video.ours_of_folders() if workers is None else video.by_pillow(workers)
    assert work() == work() == 3 * video.FRAMES
    video.frame_folders.cache_clear()


@pytest.mark.parametrize("make", audio.cases()[0].providers.values(), ids=audio.cases()[0].providers)
def test_a_call_reads_a_window_of_every_recording(make: functools.partial[Work]) -> None:
    pytest.importorskip("soundfile", reason="the package soundfile is not installed")
    work = make.func(2 * audio.BATCH, 1, 500, **make.keywords)
    assert work() == work() == 2
