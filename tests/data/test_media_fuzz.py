"""Mutated and truncated videos, recordings and shards: each is read, or named; none crashes, hangs or goes on and on.

The decoders are other people's, in C: they run in a process of their own, so that a crash or a hang is seen as one.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from image_files import encode, noise
from shard_files import write_shard
from wav_files import write_wav

SEED = 0
LIMIT = 120  # seconds, for a hang is for ever

READ = """
import json, sys, warnings
from pathlib import Path

warnings.simplefilter("ignore")
kind, folder = sys.argv[1], Path(sys.argv[2])
told = {}
listed = kind in ("clips", "recordings")
if listed:
    from fastssl.data import plans
    from fastssl.data.audio import WindowLoader, list_recordings
    from fastssl.data.clips import ClipLoader, list_clips
    from fastssl.errors import UserError
    if kind == "clips":
        found, shape = list_clips(folder, 4, max_skipped=1.0), (1, 4, 3, 8, 8)
        begun = {found.videos[video].name for video, _ in found.clips}
        loader = ClipLoader(found, plans.eval(8), 1, 0, threads=2, max_skipped=1.0)
    else:
        found, shape = list_recordings(folder, max_skipped=1.0), (1, 400)
        begun = set(found.names)
        loader = WindowLoader(found, 400, 1, 0, threads=2, max_skipped=1.0)
    told = {path.name: [] for path in folder.iterdir()}
    for item in found.skipped:
        told[item.name].append(item.reason)
    assert begun == {name for name, reasons in told.items() if not reasons}  # each is used, or named
    before, views, step = len(loader.skipped), 0, 0
    while step < loader.steps_per_epoch:
        try:
            for (view,) in loader.epoch(0, step):
                assert view.shape == shape
                views, step = views + 1, step + 1
        except UserError as error:
            assert "none of the 1 files" in str(error), error
            step += 1
    lost = loader.skipped[before:]
    assert views + len(lost) == len(found)  # every clip or recording is shown, or counted
    for item in lost:
        told[item.name.partition(", from frame")[0]].append(item.reason)
    loader.close()
    told = {name: reasons or None for name, reasons in told.items()}
for path in [] if listed else sorted(folder.iterdir()):
    print(path.name, flush=True)
    try:
        if kind == "video":
            from fastssl.data.clips import list_clips
            from fastssl.data.video import open_file
            film = open_file(path.name, path)
            film.spaced(1, 10.0)
            for first in range(0, len(film), 8):
                assert film.read(range(first, min(first + 8, len(film))), 16).shape[1:] == (16, 16, 3)
            told[path.name] = None
        elif kind == "audio":
            from fastssl.data.audio import WindowLoader, list_recordings
            alone = folder.parent / f"alone-{path.name}"
            alone.mkdir()
            path.rename(alone / path.name)
            found = list_recordings(str(alone))
            loader = WindowLoader(found, 400, 1, 0)
            for epoch in range(3):
                ((windows,),) = loader.epoch(epoch)
                assert windows.shape == (1, 400) and bool((windows.abs() <= 1).all())
            loader.close()
            told[path.name] = None
        else:
            from fastssl.data import plans
            from fastssl.data.webdataset import ShardLoader, list_shards
            found = list_shards([str(path)])
            loader = ShardLoader(found, plans.eval(8), 1, 0, threads=1, max_skipped=1.0)
            views = 0
            for step in range(loader.steps_per_epoch):
                try:
                    views += len(next(loader.epoch(0, step))[0])
                except ValueError as error:
                    assert "none of the 1 files" in str(error), error
            assert views + len(loader.skipped) - len(found.skipped) == len(found)
            loader.close()
            told[path.name] = [item.reason for item in loader.skipped] or None
    except Exception as error:
        from fastssl.data.decode import UnreadableError
        from fastssl.errors import UserError
        if not isinstance(error, (UnreadableError, UserError)):
            raise
        told[path.name] = [str(error)]
print(json.dumps(told))
"""


def mutated(contents: list[bytes], count: int, header: int) -> list[bytes]:
    """Each with a few bytes changed, half of these among the first ``header``; every third cut short as well."""
    rng = np.random.default_rng(SEED)
    found = []
    for i in range(count):
        data = bytearray(contents[i % len(contents)])
        for change in range(1 + i % 6):
            end = min(header, len(data)) if change % 2 == 0 else len(data)
            data[rng.integers(end)] = rng.choice([0, 1, 127, 128, 255, rng.integers(256)])
        if i % 3 == 0:
            del data[rng.integers(1, len(data)) :]
        found.append(bytes(data))
    return found


def read(kind: str, folder: Path) -> dict[str, list[str] | None]:
    """What became of each file in ``folder``: None for one that was read whole, else what was said of it."""
    done = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-c", READ, kind, str(folder)],
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-200:] + done.stderr[-3000:]
    told: dict[str, list[str] | None] = json.loads(done.stdout.splitlines()[-1])
    assert all("\n" not in reason and reason for reasons in told.values() for reason in reasons or [])
    return told


def fuzzed(kind: str, folder: Path, contents: dict[str, bytes], count: int, header: int) -> None:
    names = list(contents)
    folder.mkdir()
    for i, data in enumerate(mutated(list(contents.values()), count, header)):
        (folder / f"{i:03}{names[i % len(names)]}").write_bytes(data)
    for name, data in contents.items():
        (folder / f"whole{name}").write_bytes(data)
    told = read(kind, folder)
    assert len(told) == count + len(contents)
    assert {name for name in told if name.startswith("whole")} <= {
        name for name, reasons in told.items() if not reasons
    }
    bad = [name for name, reasons in told.items() if reasons]
    assert len(bad) >= count / 4  # the rest differs in what nobody can tell from what was meant


def test_videos(tmp_path: Path) -> None:
    pytest.importorskip("av", reason="PyAV is not installed")
    from video_files import CODECS, write_video

    contents = {}
    for i, (codec, suffix, options) in enumerate(CODECS.values()):
        path = write_video(tmp_path / f"{i}{suffix}", 24, codec, options)
        contents[f".{i}{suffix}"] = path.read_bytes()
    fuzzed("video", tmp_path / "mutated", contents, 180, 600)
    fuzzed("clips", tmp_path / "of a folder", contents, 90, 600)


def test_recordings(tmp_path: Path) -> None:
    soundfile = pytest.importorskip("soundfile", reason="the package soundfile is not installed")
    rng = np.random.default_rng(SEED)
    signal = rng.uniform(-1, 1, 900)
    contents = {".wav": write_wav(tmp_path / "a.wav", rng.integers(-(2**15), 2**15, 900)).read_bytes()}
    for suffix, form, subtype in (
        (".24.wav", "WAVEX", "PCM_24"),
        (".f.wav", "WAV", "FLOAT"),
        (".flac", "FLAC", "PCM_16"),
    ):
        soundfile.write(tmp_path / "b", signal, 8000, format=form, subtype=subtype)
        contents[suffix] = (tmp_path / "b").read_bytes()
    fuzzed("audio", tmp_path / "mutated", contents, 160, 60)
    fuzzed("recordings", tmp_path / "of a folder", contents, 160, 60)


def test_shards(tmp_path: Path) -> None:
    pytest.importorskip("webdataset", reason="the package webdataset is not installed")
    images = {
        f"{i}.{form.lower()}": encode(noise(24, 24, seed=i), form) for i, form in enumerate(("JPEG", "PNG", "WEBP") * 2)
    }
    content = write_shard(tmp_path / "0.tar", images).read_bytes()
    long = write_shard(tmp_path / "1.tar", {f"{'long' * 30}/{name}": data for name, data in images.items()})
    fuzzed("shards", tmp_path / "mutated", {".0.tar": content, ".1.tar": long.read_bytes()}, 160, 512)
