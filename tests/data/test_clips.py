from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from dali_helpers import RAW
from image_files import encode, noise, write_tar, write_tree, write_zip
from torch import Tensor
from video_files import HEIGHT, WIDTH, needs_av, numbers, write_frames, write_video

from fastssl.data import plans
from fastssl.data.clips import ClipLoader, ClipSet, list_clips
from fastssl.data.decode import UnreadableError
from fastssl.data.media import some_frames
from fastssl.errors import UserError

pytestmark = needs_av
LOOK = replace(plans.eval(32), crop_ratio=(WIDTH / HEIGHT,) * 2, **RAW)  # whole frames


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("films")
    write_video(folder / "long.mp4", 40, options={"g": "12", "bf": "2"})
    write_video(folder / "more" / "short.mkv", 17, options={"g": "12", "bf": "2"})
    return folder


def seen(clip: Tensor) -> list[int]:
    """The numbers of the frames of (T, 3, H, W) uint8."""
    return numbers(clip.movedim(1, 3))


def loaded(loader: ClipLoader, epoch: int = 0, start: int = 0) -> list[list[list[int]]]:
    """The numbers of the frames of each clip of each batch, of views that show whole frames."""
    return [[seen((clip * 255).round()) for clip in view] for (view,) in loader.epoch(epoch, start)]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"frames": 16}, [range(16), range(16, 32), range(16)]),
        ({"frames": 3, "stride": 6}, [range(0, 18, 6), range(18, 36, 6), range(0, 18, 6)]),
        ({"frames": 15, "every": 20}, [range(15), range(20, 35), range(15)]),
        ({"frames": 30, "every": 5}, [range(30), range(5, 35), range(10, 40)]),
        ({"frames": 3, "fps": 5}, [range(0, 15, 5), range(15, 30, 5), range(0, 15, 5)]),
        ({"frames": 50, "fps": 50}, [sorted([*range(25), *range(25)])]),
    ],
)
def test_clips_are_listed_in_order(settings: dict[str, int], expected: list[range], films: Path) -> None:
    clips = list_clips(str(films), **settings)
    assert [seen(clip) for clip in clips] == [list(frames) for frames in expected]  # type: ignore[attr-defined]
    assert clips[0].shape == (settings["frames"], 3, HEIGHT, WIDTH)
    assert clips[0].dtype == torch.uint8
    assert clips.name(len(clips) - 1).endswith(f"from frame {expected[-1][0]}")
    short = [item.name for item in clips.skipped]
    assert short == (["more/short.mkv"] if len(expected) in (1, 3) and settings["frames"] >= 30 else [])


def test_folders_zips_and_tars_of_frames_give_the_same(tmp_path: Path) -> None:
    folder = write_frames(tmp_path / "frames", {"JPEGImages/bear": 9, "JPEGImages/camel": 12})
    files = {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*.jpg"))}
    sources = [folder, write_zip(tmp_path / "f.zip", files), write_tar(tmp_path / "f.tar", files)]
    for source in sources:
        clips = list_clips(str(source), 4, stride=2)
        assert [seen(clips[i]) for i in range(len(clips))] == [[0, 2, 4, 6], [0, 2, 4, 6]]
        assert [video.name for video in clips.videos] == ["JPEGImages/bear", "JPEGImages/camel"]
        assert repr(clips.videos[0]) == "FrameFolder('JPEGImages/bear', 9 frames)"
        assert numbers(clips.videos[1].read(range(12))) == list(range(12))
        clips.close()
    with pytest.raises(UserError, match="compressed tar"):
        list_clips(str(write_tar(tmp_path / "f.tar.gz", files, "gz")), 4)


def test_a_run_resumed_in_mid_epoch_sees_what_an_uninterrupted_one_sees(films: Path) -> None:
    plan = plans.byol(24)
    clips = list_clips(str(films), 4)
    whole = list(ClipLoader(clips, plan, 3, seed=7, threads=1).epoch(2))
    loader = ClipLoader(list_clips(str(films), 4), plan, 3, seed=7, threads=3)
    next(loader.epoch(2))  # left in the middle
    resumed = list(loader.epoch(2, start_step=2))
    loader.close()
    assert (len(clips), len(whole), len(resumed)) == (14, 4, 2)
    for before, after in zip(whole[2:], resumed, strict=True):
        assert [view.shape for view in after] == [(3, 4, 3, 24, 24)] * 2
        assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_batches_hold_the_frames_of_their_clips(films: Path) -> None:
    clips = list_clips(str(films), 4)
    loader = ClipLoader(clips, LOOK, 5, 0)
    batches = loaded(loader)
    assert loader.steps_per_epoch == len(batches) == 2
    known = [seen(clips[i]) for i in range(len(clips))]
    assert all(clip in known for batch in batches for clip in batch)
    assert loaded(loader, 1) != batches == loaded(loader, 0)


def test_a_view_of_a_clip_has_one_set_of_parameters_or_one_a_frame(tmp_path: Path) -> None:
    image = encode(noise(16, 16))
    write_tree(tmp_path, {f"still/{frame}.png": image for frame in range(3)})
    clips = list_clips(str(tmp_path), 3)
    (first, second) = next(ClipLoader(clips, plans.simclr(16), 1, 0).epoch(0))
    assert torch.equal(first[0, 0], first[0, 1])
    assert torch.equal(first[0, 0], first[0, 2])
    assert not torch.equal(first, second)
    (first, _) = next(ClipLoader(clips, plans.simclr(16), 1, 0, alike=False).epoch(0))
    assert not torch.equal(first[0, 0], first[0, 1])


def test_ranks_see_clips_of_their_own(films: Path) -> None:
    clips = list_clips(str(films), 4)
    both = [ClipLoader(clips, LOOK, 3, 0, rank=rank, world=2) for rank in (0, 1)]
    assert [len(loaded(loader)) for loader in both] == [2, 2]
    one, other = ({int(i) for _, chosen in loader.schedule.chosen(0) for i in chosen} for loader in both)
    assert not one & other


@pytest.mark.filterwarnings("ignore:.*cannot be read")
def test_corrupt_files_are_named_and_replaced(tmp_path: Path) -> None:
    write_frames(tmp_path, {str(i): 4 for i in range(6)})
    (tmp_path / "2" / "1.jpg").write_bytes(b"no image")
    content = (tmp_path / "4" / "3.jpg").read_bytes()
    (tmp_path / "4" / "3.jpg").write_bytes(content[: len(content) // 2])
    clips = list_clips(str(tmp_path), 4)
    loader = ClipLoader(clips, LOOK, 6, 0, max_skipped=0.4)
    with pytest.warns(UserWarning, match="another takes its place"):
        found = loaded(loader)
    assert found == loaded(loader) == [[[0, 1, 2, 3]] * 6]
    assert sorted(item.name for item in loader.skipped) == ["2, from frame 0", "4, from frame 0"]
    with pytest.raises(UserError, match="too many unreadable files: 2 so far, 1 of 6 allowed"):
        loaded(ClipLoader(clips, LOOK, 6, 0))
    with pytest.raises(UnreadableError, match="damaged"):
        clips[4]


def test_files_that_are_no_videos_are_named(films: Path, tmp_path: Path) -> None:
    for name in ("a.mp4", "b.mp4", "d.mp4"):
        (tmp_path / name).write_bytes((films / "long.mp4").read_bytes())
    (tmp_path / "c.mp4").write_bytes(b"no video")
    at: list[tuple[int, int]] = []
    clips = list_clips(str(tmp_path), 40, progress=lambda *done: at.append(done))
    assert (len(clips), [item.name for item in clips.skipped]) == (3, ["c.mp4"])
    assert at == [(i, 4) for i in range(1, 5)]
    (tmp_path / "d.mp4").write_bytes(b"")
    with pytest.raises(UserError, match="too many unreadable videos: 2 of 4, 1 allowed") as caught:
        list_clips(str(tmp_path), 40)
    assert str(caught.value).endswith("remove or repair them, or allow a larger share by --max_skipped (now 0.1)")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"frames": 0}, "frames must be at least 1; got 0"),
        ({"frames": 2, "stride": 0}, "stride must be at least 1"),
        ({"frames": 2, "every": 0}, "every must be at least 1"),
        ({"frames": 2, "size": 0}, "size must be at least 1"),
        ({"frames": 2, "fps": 0}, "fps must be above 0"),
        ({"frames": 2, "fps": float("nan")}, "fps must be above 0 and finite; got nan"),
        ({"frames": 2, "fps": 5, "stride": 2}, "a stride or fps, not both"),
        ({"frames": 41}, "no clip of 41 frames in .*too short: 40 frames"),
    ],
)
def test_what_cannot_be_used_is_refused(settings: dict[str, float], message: str, films: Path) -> None:
    with pytest.raises(UserError, match=message) as caught:
        list_clips(str(films), **settings)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_sources_without_videos_are_refused(tmp_path: Path, films: Path) -> None:
    with pytest.raises(UserError, match="no file or folder"):
        list_clips(str(tmp_path / "nowhere"), 2)
    with pytest.raises(UserError, match=r"no clip of 2 frames in .*no file ends in .*, and no folder has images"):
        list_clips(tmp_path, 2)
    (tmp_path / "a.mp4").write_bytes(b"no video")
    with pytest.raises(UserError, match=r"\('a.mp4': .*\): give whole videos, or folders of their frames"):
        list_clips(tmp_path, 2)
    with pytest.raises(UserError, match="a batch of 9 is larger than the data set of 3 clips"):
        ClipLoader(list_clips(str(films), 16), LOOK, 9, 0)


def test_a_clip_that_only_the_report_meets_is_named_and_counted_too(tmp_path: Path) -> None:
    write_frames(tmp_path, {str(i): 4 for i in range(6)})
    (tmp_path / "2" / "0.jpg").write_bytes(b"no image")
    clips = list_clips(str(tmp_path), 4)
    with pytest.warns(UserWarning, match="'2, from frame 0' cannot be read .*: the report leaves it out"):
        shown = some_frames(clips, "films", size=8, count=99, seed=0)
    assert shown.names == tuple(f"{i}, from frame 0" for i in (0, 1, 3, 4, 5))
    assert shown.images.shape == (5, 3, 8, 8)
    assert [item.name for item in clips.skipped] == [item.name for item in shown.skipped] == ["2, from frame 0"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        some_frames(clips, "films", size=8, count=99, seed=0)


def test_a_single_file_is_a_source(films: Path) -> None:
    clips = list_clips(str(films / "long.mp4"), 20)
    assert repr(clips) == "ClipSet(2 clips of 20 frames, 1 video, 0 skipped)"
    assert repr(clips.videos) == "(VideoFile('long.mp4', 40 frames),)"
    assert [seen(clips[i]) for i in range(len(clips))] == [list(range(20)), list(range(20, 40))]


def test_photographs_in_folders_are_no_frames(tmp_path: Path) -> None:
    write_frames(tmp_path, {"bear": 6})
    write_tree(tmp_path, {f"photos/{i}.png": encode(noise(16 + i, 16)) for i in range(6)})
    clips = list_clips(str(tmp_path), 3)
    assert [video.name for video in clips.videos] == ["bear"]
    (left_out,) = clips.skipped
    assert (left_out.name, left_out.reason) == (
        "photos",
        "its images differ in size, so they are no frames of a video",
    )
    with pytest.raises(UserError, match=r"no clip of 3 frames .*its images differ in size"):
        list_clips(str(tmp_path / "photos"), 3)


def test_a_set_of_clips_is_a_data_set_of_torch(films: Path) -> None:
    clips: ClipSet = list_clips(str(films), 8, size=16)
    batch = next(iter(torch.utils.data.DataLoader(clips, 3)))  # type: ignore[arg-type]
    assert batch.shape == (3, 8, 3, 16, 16)
