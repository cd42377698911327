from __future__ import annotations

import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from image_files import encode, plain
from video_files import CODECS, coded, from_the_start, needs_av, numbers, write_frames, write_video

from fastssl.data import video
from fastssl.data.decode import UnreadableError, decode
from fastssl.data.sources import Entry, list_images
from fastssl.data.video import (
    FrameFolder,
    VideoFile,
    folders_of_frames,
    frame_rate,
    frames_of,
    open_file,
    open_one,
)
from fastssl.errors import UserError

pytestmark = needs_av
COUNT = 40


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("films")
    return {
        name: write_video(folder / f"{name}{suffix}", COUNT, codec, options)
        for name, (codec, suffix, options) in CODECS.items()
    }


@pytest.mark.parametrize("name", CODECS)
def test_any_frame_is_the_one_that_decoding_from_the_start_gives(name: str, films: dict[str, Path]) -> None:
    film = open_file("film", films[name])
    whole = from_the_start(films[name])
    assert numbers(whole) == list(range(COUNT))
    assert len(film) == COUNT
    for frame in range(COUNT):
        assert torch.equal(film.read([frame])[0], whole[frame]), frame
    wanted = [3, 4, 4, 11, 30, 39]
    assert torch.equal(film.read(wanted), whole[wanted])
    assert torch.equal(film.read(range(COUNT)), whole)


def test_decoding_begins_at_the_keyframe_before(films: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    film = open_file("film", films["h264"])
    assert len(film.keys) == 4
    begun: list[int] = []
    decoded = video.VideoFile._packets

    def noted(self: VideoFile, container: object, stream: object, begin: int) -> object:
        packets = decoded(self, container, stream, begin)
        assert packets is not None
        for packet in packets:
            begun.append(film.times.index(packet.pts)) if packet.size else None
            yield packet

    monkeypatch.setattr(video.VideoFile, "_packets", noted)
    assert numbers(film.read([30])) == [30]
    assert min(begun) == 24


def test_where_seeking_lands_elsewhere_decoding_begins_at_the_start(
    films: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    film = open_file("film", films["h264"])
    begun: list[int] = []
    decoded = video.VideoFile._decoded

    def noted(self: VideoFile, key: int) -> object:
        begun.append(film.times.index(key))
        return decoded(self, key)

    monkeypatch.setattr(video.VideoFile, "_decoded", noted)
    assert numbers(film.read([30])) == [30]
    assert begun == [24]
    wrong = VideoFile("film", film.path, film.times, (film.times[0], film.times[20]), film.unit)
    monkeypatch.setattr(video.VideoFile, "_packets", _after(video.VideoFile._packets, film.times[20]))
    assert numbers(wrong.read([30])) == [30]
    assert begun == [24, 20, 0]


def _after(packets, key: int):
    """Seeks past the frame of time ``key`` where that is asked for."""
    return lambda self, container, stream, begin: packets(
        self, _Late(container) if begin == key else container, stream, begin
    )


class _Late:
    """A container that is sought in to no avail."""

    def __init__(self, container) -> None:
        self.demux = container.demux

    def seek(self, *_: object, **__: object) -> None:
        next(self.demux(video=0))


def test_frames_of_a_varying_rate_are_found_by_time(tmp_path: Path) -> None:
    gaps = [1, 9, 2, 30, 1, 1, 15, 4, 40, 3] * 3
    times = [sum(gaps[:i]) for i in range(len(gaps))]
    path = write_video(
        tmp_path / "slow.mkv", len(gaps), "libx264", {"g": "8", "bf": "2"}, times=times, unit=Fraction(1, 1000)
    )
    film = open_file("slow", path)
    seconds = [float(time * film.unit) for time in film.times]
    np.testing.assert_allclose(seconds, np.array(times) / 1000, atol=1e-9)
    whole = from_the_start(path)
    for frame in range(len(gaps)):
        assert torch.equal(film.read([frame])[0], whole[frame])
    # at 100 a second: the last frame at or before each hundredth
    expected = [max(i for i, time in enumerate(times) if time <= 10 * k) for k in range(times[-1] // 10 + 1)]
    assert film.spaced(1, 100) == expected
    assert torch.equal(film.read(expected), whole[expected])


def test_frames_by_rate_and_by_stride(films: dict[str, Path]) -> None:
    film = open_file("film", films["h264"])
    assert film.spaced(7, None) == [0, 7, 14, 21, 28, 35]
    assert film.spaced(1, 25) == list(range(COUNT))
    assert film.spaced(1, 5) == list(range(0, COUNT, 5))
    assert film.spaced(1, 50) == sorted([*range(COUNT), *range(COUNT - 1)])
    assert film.spaced(1, 10) == [5 * k // 2 for k in range(16)]
    with pytest.raises(UnreadableError, match="40 frames cannot be shown for"):
        VideoFile("film", film.path, (*film.times[:-1], 10**15), film.keys, film.unit).spaced(1, 25)


def test_frames_are_resized_as_images_are(films: dict[str, Path]) -> None:
    film = open_file("film", films["h264"])
    whole = from_the_start(films["h264"])
    found = film.read([2, 20], 16)
    assert found.shape == (2, 16, 16, 3)
    for frame, pixels in zip((2, 20), found, strict=True):
        from PIL import Image

        expected = decode(encode(Image.fromarray(whole[frame].numpy())), 16)
        assert torch.equal(pixels, torch.tensor(expected))


@pytest.mark.parametrize("quarters", [1, 2, 3])
def test_turned_videos_are_upright(quarters: int, tmp_path: Path) -> None:
    path = write_video(tmp_path / "film.mp4", 3)
    content = path.read_bytes()
    one = 0x10000
    matrices = {0: (one, 0, 0, one), 1: (0, one, -one, 0), 2: (-one, 0, 0, -one), 3: (0, -one, one, 0)}

    def box(a: int, b: int, c: int, d: int) -> bytes:
        return b"".join(x.to_bytes(4, "big", signed=True) for x in (a, b, 0, c, d, 0, 0, 0, 0x40000000))

    place = content.index(box(*matrices[0]), content.index(b"tkhd"))  # clockwise, as players turn it
    path.write_bytes(content[:place] + box(*matrices[quarters]) + content[place + 36 :])
    found = open_file("film", path).read([2])[0]
    assert torch.equal(found, from_the_start(path)[2].rot90(-quarters))


def test_frames_that_change_their_size_are_no_clip(tmp_path: Path) -> None:
    for i, size in enumerate([(8, 8), (8, 8), (6, 8)]):
        (tmp_path / f"{i}.png").write_bytes(plain("red", size))
    (film,) = folders_of_frames(list_images(tmp_path).entries)
    assert film.read([0, 1]).shape == (2, 8, 8, 3)
    with pytest.raises(UnreadableError, match="its frames differ in size"):
        film.read([1, 2])
    assert film.read([1, 2], 4).shape == (2, 4, 4, 3)


def test_folders_of_frames_are_videos(tmp_path: Path) -> None:
    entries = list_images(write_frames(tmp_path, {"b/cat": 3, "a2": 12, "a10": 2})).entries
    films = folders_of_frames(entries)
    assert [(film.name, len(film)) for film in films] == [("a2", 12), ("a10", 2), ("b/cat", 3)]
    assert numbers(films[0].read(range(12))) == list(range(12))
    assert films[0].spaced(5, None) == [0, 5, 10]
    with pytest.raises(UserError, match="'a2' have no times to take 10 a second of"):
        films[0].spaced(1, 10)


def test_a_frame_that_cannot_be_read_is_told() -> None:
    def gone() -> bytes:
        raise UnreadableError("gone")

    film = FrameFolder("film", (Entry("0.png", plain), Entry("1.png", gone)))
    assert film.read([0]).shape == (1, 8, 8, 3)
    with pytest.raises(UnreadableError, match="gone"):
        film.read([0, 1])


@pytest.mark.parametrize("share", [0.2, 0.5, 0.8])
@pytest.mark.parametrize("name", CODECS)
def test_of_a_file_that_is_cut_short_only_what_is_there_is_read(
    name: str, share: float, films: dict[str, Path], tmp_path: Path
) -> None:
    content = films[name].read_bytes()
    path = tmp_path / films[name].name
    path.write_bytes(content[: int(share * len(content))])
    try:
        film = open_file("film", path)
    except UnreadableError:
        return
    assert len(film) < COUNT or name == "mpeg2"  # its end is padding
    whole = from_the_start(films[name])
    for frame in range(0, len(film), 5):
        try:
            found = film.read([frame])
        except UnreadableError:
            continue
        assert numbers(found) == numbers(whole[[frame]])


@pytest.mark.parametrize("name", ["h264 open gop", "mpeg4", "mjpeg"])
def test_frames_that_damage_reaches_are_told_and_the_others_come(
    name: str, films: dict[str, Path], tmp_path: Path
) -> None:
    import av

    content = bytearray(films[name].read_bytes())
    with av.open(str(films[name])) as container:
        packet = [packet for packet in container.demux(video=0) if packet.size][20]
        middle, end = packet.pos + packet.size // 2, packet.pos + packet.size
        content[middle:end] = b"\xff" * (end - middle)
    path = tmp_path / films[name].name
    path.write_bytes(content)
    film, whole = open_file("film", path), from_the_start(films[name])
    told: dict[int, str] = {}
    for frame in range(COUNT):
        try:
            assert torch.equal(film.read([frame])[0], whole[frame])
        except UnreadableError as error:
            told[frame] = str(error)
    assert all("damaged" in reason for reason in told.values())
    assert 20 in told
    assert len(told) <= 10  # up to the next keyframe


def test_frames_that_a_file_says_to_leave_out_are_left_out(films: dict[str, Path], tmp_path: Path) -> None:
    content = films["h264"].read_bytes()
    place = content.index(b"elst") + 16
    unit = open_file("film", films["h264"]).unit
    begin = int.from_bytes(content[place : place + 4], "big") + 5 * round(Fraction(1, 25) / unit)
    path = tmp_path / "film.mp4"
    path.write_bytes(content[:place] + begin.to_bytes(4, "big") + content[place + 4 :])
    film = open_file("film", path)
    assert numbers(film.read(range(len(film)))) == list(range(5, COUNT))
    assert numbers(film.read([20])) == [25]


@pytest.mark.parametrize("content", [b"", b"no video", b"\0" * 5000])
def test_what_is_no_video_is_told(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "film.mp4"
    path.write_bytes(content)
    with pytest.raises(UnreadableError, match="damaged") as caught:
        open_file("film", path)
    assert "\n" not in str(caught.value)


def test_a_list_of_other_files_is_not_followed(films: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "film.mp4"
    path.write_text(f"#EXTM3U\n#EXTINF:1,\nfile://{films['h264']}\n#EXT-X-ENDLIST\n")
    with pytest.raises(UnreadableError):
        open_file("film", path)
    path.write_text(f"ffconcat version 1.0\nfile '{films['h264']}'\n")
    with pytest.raises(UnreadableError):
        open_file("film", path)


def test_a_file_with_sound_alone_has_no_video(tmp_path: Path) -> None:
    import av

    path = tmp_path / "film.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), dtype=np.int16), format="s16", layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with pytest.raises(UnreadableError, match="no video in it"):
        open_file("film", path)


def test_videos_too_large_to_hold_are_not_decoded(films: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(video, "MAX_PIXELS", 32 * 48 - 1)
    with pytest.raises(UnreadableError, match="48 x 32 pixels are more than the 1535 allowed"):
        open_file("film", films["h264"])


def test_what_is_missing_is_said(monkeypatch: pytest.MonkeyPatch, films: dict[str, Path]) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(UserError, match=r"pip install 'fastssl\[video\]'") as caught:
        open_file("film", films["h264"])
    assert "\n" not in str(caught.value)


def test_one_video_is_a_file_or_a_folder_of_frames(films: dict[str, Path], tmp_path: Path) -> None:
    assert numbers(torch.stack(list(frames_of(open_one(str(films["h264"])))))) == list(range(COUNT))
    root = write_frames(tmp_path, {"bear": 40, "camel": 3})
    assert numbers(torch.stack(list(frames_of(open_one(str(root / "bear")))))) == list(range(40))
    for path, message in (
        (root / "nowhere.mp4", "no file or folder"),
        (root, r"holds 2 folders of images \('bear', 'camel'\): give the folder of the frames of one video"),
        (root / "bear" / "0.jpg", "has none of the endings of a video"),
    ):
        with pytest.raises(UserError, match=message):
            open_one(str(path))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no image"):
        open_one(str(tmp_path / "empty"))


def test_frames_of_two_sizes_are_no_video(tmp_path: Path) -> None:
    for i in range(40):
        (tmp_path / f"{i}.png").write_bytes(plain("red", (8, 8) if i < 36 else (9, 8)))
    with pytest.raises(UnreadableError, match="its frames differ in size"):
        list(frames_of(open_one(str(tmp_path))))
    assert not open_one(str(tmp_path)).of_one_size()
    (tmp_path / "39.png").write_bytes(b"no image")
    assert open_one(str(tmp_path)).of_one_size()


def test_the_rate_is_the_mean_of_the_file_or_davis(films: dict[str, Path], tmp_path: Path) -> None:
    assert frame_rate(open_file("film", films["h264"])) == pytest.approx(25)
    slow = write_video(tmp_path / "slow.mp4", 4, times=[0, 10, 20, 60])
    assert frame_rate(open_file("film", slow)) == pytest.approx(3 / (60 / 25))
    assert frame_rate(open_one(str(write_frames(tmp_path, {"bear": 2}) / "bear"))) == 24


def test_the_numbers_in_the_frames_can_be_read() -> None:
    assert numbers(torch.stack([torch.from_numpy(coded(i)) for i in range(200)])) == list(range(200))
