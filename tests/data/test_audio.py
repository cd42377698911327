from __future__ import annotations

import os
import sys
import wave
from pathlib import Path

import numpy as np
import pytest
import torch
from wav_files import ramp, write_wav

from fastssl.data.audio import SPOKEN_DIGITS, Recordings, WindowLoader, list_recordings
from fastssl.data.decode import UnreadableError
from fastssl.errors import UserError

soundfile = pytest.importorskip("soundfile", reason="the package soundfile is not installed")


def starts(loader: WindowLoader, epoch: int = 0, start: int = 0) -> list[list[int]]:
    """Of recordings that are ramps, the first value of each window of each batch."""
    return [(windows[:, 0] * 2**15).round().int().tolist() for (windows,) in loader.epoch(epoch, start)]


def ramps(folder: Path, count: int = 12, length: int = 100) -> Recordings:
    """Recordings whose windows tell where they are from: the i-th begins with 1000 i."""
    for i in range(count):
        write_wav(folder / f"{i:02}.wav", ramp(length, 1000 * i))
    return list_recordings(str(folder))


@pytest.mark.parametrize(
    ("subtype", "form", "step"),
    [
        ("PCM_U8", "WAV", 2**-7),
        ("PCM_16", "WAV", 2**-15),
        ("PCM_24", "WAV", 2**-23),
        ("PCM_32", "WAV", 2**-24),
        ("FLOAT", "WAV", 2**-24),
        ("DOUBLE", "WAV", 2**-24),
        ("PCM_24", "WAVEX", 2**-23),
        ("PCM_16", "FLAC", 2**-15),
        ("PCM_24", "AIFF", 2**-23),
    ],
)
def test_every_kind_of_sample_is_read(subtype: str, form: str, step: float, tmp_path: Path) -> None:
    signal = np.random.default_rng(0).uniform(-0.99, 0.99, 500)
    name = tmp_path / f"a.{'wav' if form == 'WAVEX' else form.lower()}"
    soundfile.write(name, signal, 8000, subtype=subtype, format=form)
    found = list_recordings(str(tmp_path))
    assert (found.lengths, found.rate) == ((500,), 8000)
    whole = found.read(0)
    assert (whole.dtype, whole.shape) == (torch.float32, (500,))
    np.testing.assert_allclose(whole.numpy(), signal, atol=step)
    assert torch.equal(found.read(0, 123, 45), whole[123:168])
    assert torch.equal(found.read(0, 499), whole[499:])


def test_16_bit_samples_are_what_the_standard_library_reads(tmp_path: Path) -> None:
    path = write_wav(tmp_path / "a.wav", np.random.default_rng(0).integers(-(2**15), 2**15, 300))
    with wave.open(str(path)) as file:
        expected = np.frombuffer(file.readframes(300), dtype="<i2").astype(np.float32) / 2**15
    assert np.array_equal(list_recordings(str(tmp_path)).read(0).numpy(), expected)


def test_channels_are_averaged(tmp_path: Path) -> None:
    both = np.random.default_rng(0).integers(-(2**15), 2**15, (50, 3))
    write_wav(tmp_path / "a.wav", both)
    found = list_recordings(str(tmp_path)).read(0)
    np.testing.assert_allclose(found.numpy(), both.mean(1) / 2**15, atol=1e-6)


def test_values_stay_in_their_range(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", np.array([0.5, 7.0, -3.0]), 8000, subtype="FLOAT")
    soundfile.write(tmp_path / "b.wav", np.array([0.5, np.nan]), 8000, subtype="FLOAT")
    found = list_recordings(str(tmp_path))
    assert found.read(0).tolist() == [0.5, 1.0, -1.0]
    with pytest.raises(UnreadableError, match="not finite"):
        found.read(1)


def test_labels_are_read_off_file_names(tmp_path: Path) -> None:
    for name in ("7_jackson_32", "0_theo_1", "7_theo_0"):
        write_wav(tmp_path / "recordings" / f"{name}.wav", ramp(10))
    found = list_recordings(str(tmp_path), pattern=SPOKEN_DIGITS)
    assert found.names == ("recordings/0_theo_1.wav", "recordings/7_jackson_32.wav", "recordings/7_theo_0.wav")
    assert found.classes == {"digit": ("0", "7"), "speaker": ("jackson", "theo")}
    assert found.labels["digit"].tolist() == [0, 1, 1]
    kinds = "2 digits (0, 7), 2 speakers (jackson, theo)"
    assert repr(found) == f"Recordings(3 recordings at 8000 Hz, {kinds}, 0 skipped)"
    assert found.labels["speaker"].tolist() == [1, 0, 1]
    with pytest.raises(UserError, match=r"the name of 'recordings/0_theo_1.wav' does not match '\[a-z\]\+'"):
        list_recordings(str(tmp_path), pattern="[a-z]+")
    with pytest.raises(UserError, match="is no regular expression"):
        list_recordings(str(tmp_path), pattern="(")


def test_labels_are_read_off_folders(tmp_path: Path) -> None:
    for name in ("yes/1", "no/1", "no/2"):
        write_wav(tmp_path / f"{name}.wav", ramp(10))
    found = list_recordings(str(tmp_path))
    assert (found.classes, found.labels["class"].tolist()) == ({"class": ("no", "yes")}, [0, 0, 1])
    write_wav(tmp_path / "3.wav", ramp(10))
    assert list_recordings(str(tmp_path)).labels == {}


def test_other_rates_are_not_mixed_in(tmp_path: Path) -> None:
    for i, rate in enumerate((8000, 16000, 8000)):
        write_wav(tmp_path / f"{i}.wav", ramp(10), rate)
    found = list_recordings(str(tmp_path))
    assert (found.rate, found.names) == (8000, ("0.wav", "2.wav"))
    assert [(item.name, item.reason) for item in found.skipped] == [("1.wav", "sampled at 16000 Hz and not 8000")]
    with pytest.raises(UserError, match="too many files that cannot be used: 2 of 3, 1 allowed"):
        list_recordings(str(tmp_path), rate=16000)
    with pytest.raises(UserError, match="no recording in"):
        list_recordings(str(tmp_path), rate=44100)


@pytest.mark.parametrize("content", [b"", b"no recording", b"RIFF\xff\xff\xff\xffWAVEfmt "])
def test_files_that_are_no_recordings_are_named(content: bytes, tmp_path: Path) -> None:
    ramps(tmp_path, 3)
    (tmp_path / "bad.wav").write_bytes(content)
    (tmp_path / "gone.wav").symlink_to(tmp_path / "nowhere")
    (tmp_path / ".hidden.wav").write_bytes(b"x")
    (tmp_path / "notes.txt").write_bytes(b"x")
    at: list[tuple[int, int]] = []
    found = list_recordings(str(tmp_path), max_skipped=0.4, progress=lambda *done: at.append(done))
    assert len(found) == 3
    assert [item.name for item in found.skipped] == ["bad.wav", "gone.wav"]
    assert at == [(i, 5) for i in range(1, 6)]


def test_an_empty_recording_is_named(tmp_path: Path) -> None:
    write_wav(tmp_path / "a.wav", ramp(0))
    write_wav(tmp_path / "b.wav", ramp(1))
    assert [item.reason for item in list_recordings(str(tmp_path)).skipped] == ["no sample in it"]


def test_a_file_that_is_cut_short_is_named(tmp_path: Path) -> None:
    ramps(tmp_path, 3)
    path = tmp_path / "01.wav"
    path.write_bytes(path.read_bytes()[:-41])
    found = list_recordings(tmp_path)
    assert found.names == ("00.wav", "02.wav")
    assert [(item.name, item.reason) for item in found.skipped] == [
        ("01.wav", "cut short: 79 of 100 samples are there")
    ]


def tell(path: Path, size: int) -> None:
    """Has the head of a wav file tell of so many bytes of samples."""
    data = path.read_bytes()
    at = data.index(b"data") + 4
    path.write_bytes(data[:at] + size.to_bytes(4, "little") + data[at + 4 :])


@pytest.mark.parametrize("told", [0xFFFF_FFFF, 0x7FFF_F000, 0xFFFF_FFDA])
def test_a_file_written_into_a_pipe_does_not_tell_how_long_it_is(told: int, tmp_path: Path) -> None:
    tell(write_wav(tmp_path / "a.wav", ramp(100)), told)
    assert list_recordings(tmp_path).lengths == (100,)


def test_a_head_that_counts_itself_as_samples_does_not_make_a_file_cut_short(tmp_path: Path) -> None:
    path = write_wav(tmp_path / "a.wav", ramp(100))
    tell(path, path.stat().st_size)
    found = list_recordings(tmp_path)
    assert (found.lengths, found.skipped) == ((100,), [])
    assert torch.equal(found.read(0, 90, 10) * 2**15, torch.arange(90.0, 100.0))


def test_a_file_cut_short_since_it_was_listed_is_told(tmp_path: Path) -> None:
    found = ramps(tmp_path, 1)
    path = tmp_path / "00.wav"
    path.write_bytes(path.read_bytes()[:144])
    with pytest.raises(UnreadableError, match="cut short: 50 of 100 samples are there"):
        found.read(0, 0, 50)
    write_wav(path, ramp(50))
    assert len(found.read(0, 0, 50)) == 50
    with pytest.raises(UnreadableError, match="cut short: 50 of 60"):
        found.read(0, 0, 60)
    path.unlink()
    with pytest.raises(UnreadableError):
        found.read(0)


def test_windows_are_parts_of_their_recordings(tmp_path: Path) -> None:
    loader = WindowLoader(ramps(tmp_path), 40, 5, 0)
    assert loader.steps_per_epoch == 2
    for epoch in range(10):
        for (windows,) in loader.epoch(epoch):
            assert (windows.dtype, windows.shape) == (torch.float32, (5, 40))
            values = (windows * 2**15).round().int()
            assert torch.equal(values, values[:, :1] + torch.arange(40))
            assert (values[:, 0] % 1000).max() <= 60


def test_every_place_in_a_recording_is_drawn_alike(tmp_path: Path) -> None:
    loader = WindowLoader(ramps(tmp_path, 16, 12), 10, 16, 0)
    drawn = torch.tensor([[x % 1000 for x in batch] for epoch in range(60) for batch in starts(loader, epoch)])
    shares = torch.bincount(drawn.flatten(), minlength=3) / drawn.numel()
    assert shares.shape == (3,)
    assert (shares - 1 / 3).abs().max() < 0.06  # four standard deviations of 960 draws


def test_the_order_changes_with_the_epoch_and_the_seed(tmp_path: Path) -> None:
    data = ramps(tmp_path)
    seen = [starts(WindowLoader(data, 40, 6, seed), epoch) for seed, epoch in ((0, 0), (0, 1), (1, 0), (1, 1))]
    assert all(sorted(x // 1000 for batch in batches for x in batch) == list(range(12)) for batches in seen)
    assert all(a != b for i, a in enumerate(seen) for b in seen[:i])


def test_a_run_resumed_in_mid_epoch_sees_what_an_uninterrupted_one_sees(tmp_path: Path) -> None:
    data = ramps(tmp_path)
    whole = list(WindowLoader(data, 33, 3, seed=7, threads=1).epoch(2))
    loader = WindowLoader(data, 33, 3, seed=7, threads=3)
    next(loader.epoch(2))  # left in the middle
    resumed = list(loader.epoch(2, start_step=1))
    loader.close()
    assert (len(whole), len(resumed)) == (4, 3)
    for (before,), (after,) in zip(whole[1:], resumed, strict=True):
        assert torch.equal(before, after)


def test_ranks_see_recordings_of_their_own_and_draw_on_their_own(tmp_path: Path) -> None:
    data = ramps(tmp_path / "ramps", 11)
    seen = [{x // 1000 for b in starts(WindowLoader(data, 9, 2, 0, rank=r, world=2)) for x in b} for r in (0, 1)]
    assert [len(part) for part in seen] == [4, 4]
    assert not seen[0] & seen[1]
    for i in range(4):
        write_wav(tmp_path / "same" / f"{i}.wav", ramp(1000))
    same = list_recordings(str(tmp_path / "same"))
    one, other = (starts(WindowLoader(same, 9, 2, 0, rank=r, world=2)) for r in (0, 1))
    assert one != other


def test_short_recordings_are_padded_or_refused(tmp_path: Path) -> None:
    data = ramps(tmp_path, 3, 30)
    write_wav(tmp_path / "short.wav", ramp(7, 1))
    data = list_recordings(str(tmp_path))
    ((windows,),) = WindowLoader(data, 20, 4, 0).epoch(0)
    (short,) = windows[windows[:, -1] == 0]
    assert (short * 2**15).round().int().tolist() == [*range(1, 8), *[0] * 13]
    loader = WindowLoader(data, 20, 3, 0, short="refuse")
    assert len(starts(loader)[0]) == 3
    assert [(item.name, item.reason) for item in loader.skipped] == [
        ("short.wav", "7 samples are fewer than the 20 of a window")
    ]
    with pytest.raises(UserError, match="no recording has the 31 samples of a window, the longest 30"):
        WindowLoader(data, 31, 1, 0, short="refuse")


@pytest.mark.filterwarnings("ignore:.*cannot be read")
def test_corrupt_files_are_named_and_replaced_and_nothing_else_changes(tmp_path: Path) -> None:
    data = ramps(tmp_path)
    clean = starts(WindowLoader(data, 40, 4, 0))
    for name in ("03.wav", "08.wav"):
        (tmp_path / name).write_bytes(b"no recording any more")
    loader = WindowLoader(data, 40, 4, 0, max_skipped=0.2)
    found, again = starts(loader), starts(loader)
    resumed = starts(WindowLoader(data, 40, 4, 0, max_skipped=0.2), 0, 1)
    assert found == again == [found[0], *resumed]
    assert {item.name for item in loader.skipped} == {"03.wav", "08.wav"}
    for mine, theirs in zip(found, clean, strict=True):
        assert all(a == b for a, b in zip(mine, theirs, strict=True) if b // 1000 not in (3, 8))
        assert not {3, 8} & {x // 1000 for x in mine}
    with pytest.raises(UserError, match="too many unreadable files: 2 so far, 1 of 12 allowed"):
        starts(WindowLoader(data, 40, 4, 0))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"samples": 0}, "at least 1 sample; got 0"),
        ({"short": "drop"}, "'pad' or 'refuse'; got 'drop'"),
        ({"batch_size": 3}, "a batch of 3 is larger than the data set of 2 recordings"),
        ({"max_skipped": -1}, "from 0 to 1; got -1"),
    ],
)
def test_what_cannot_be_used_is_refused(settings: dict[str, object], message: str, tmp_path: Path) -> None:
    arguments = {"samples": 5, "batch_size": 1, "seed": 0} | settings
    with pytest.raises(UserError, match=message):
        WindowLoader(ramps(tmp_path, 2), **arguments)  # type: ignore[arg-type]


def test_folders_without_recordings_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no recording in .*no file ends in \.aif, \.aiff, \.flac, \.wav"):
        list_recordings(str(tmp_path))
    with pytest.raises(UserError, match="no folder"):
        list_recordings(tmp_path / "nowhere")


def test_what_is_missing_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "00.flac", np.zeros(50), 8000)
    data = list_recordings(str(tmp_path))
    monkeypatch.setitem(sys.modules, "soundfile", None)
    with pytest.raises(UserError, match=r"pip install 'fastssl\[audio\]'") as caught:
        data.read(0)
    assert "\n" not in str(caught.value)
    assert len(ramps(tmp_path / "wav", 1).read(0)) == 100  # uncompressed ones need no package


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE"])
def test_uncompressed_files_are_read_as_libsndfile_reads_them(subtype: str, channels: int, tmp_path: Path) -> None:
    signal = np.random.default_rng(0).uniform(-0.99, 0.99, (500, channels))
    soundfile.write(tmp_path / "a.wav", signal, 8000, subtype=subtype)
    expected = soundfile.read(tmp_path / "a.wav", dtype="float64", always_2d=True)[0].mean(1)
    found = list_recordings(str(tmp_path))
    assert found.heads[0] is not None
    np.testing.assert_allclose(found.read(0, 7, 400).numpy(), expected[7:407], atol=2**-24, rtol=2**-23)


def test_a_window_is_one_read_of_its_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loader = WindowLoader(ramps(tmp_path), 40, 4, 0)
    reads: list[int] = []
    pread = os.pread
    monkeypatch.setattr(os, "pread", lambda file, count, at: (reads.append(count), pread(file, count, at))[1])
    monkeypatch.setattr(Path, "open", None)
    monkeypatch.setattr(soundfile, "SoundFile", None)
    list(loader.epoch(0))
    assert reads == [80] * 12


@pytest.mark.parametrize(
    "before", [b"", b"LIST\x05\0\0\0odd..\0", b"junk" + (70000).to_bytes(4, "little") + bytes(70000)]
)
def test_samples_are_found_behind_other_chunks(before: bytes, tmp_path: Path) -> None:
    data = write_wav(tmp_path / "a.wav", ramp(20, 5)).read_bytes()
    at = data.index(b"data")
    (tmp_path / "a.wav").write_bytes(data[:at] + before + data[at:] + b"LIST\x02\0\0\0ab")
    found = list_recordings(str(tmp_path))
    assert found.heads[0] is not None
    assert (found.read(0) * 2**15).int().tolist() == list(range(5, 25))


def test_a_file_that_is_another_by_now_is_read_as_it_is_or_told(tmp_path: Path) -> None:
    found = ramps(tmp_path, 1)
    write_wav(tmp_path / "00.wav", ramp(300, 7))
    assert (found.read(0, 2, 3) * 2**15).int().tolist() == [9, 10, 11]
    write_wav(tmp_path / "00.wav", np.zeros((100, 2), np.int16))
    with pytest.raises(UnreadableError, match="it has changed, and is no such recording any more"):
        found.read(0, 2, 3)
