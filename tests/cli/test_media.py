"""Methods that take clips or recordings, from the command line: two are put beside those that there are."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from cli_helpers import QUICK, Run, write_images
from image_files import write_tar, write_zip
from video_files import needs_av, write_frames, write_video
from wav_files import ramp, write_wav

from fastssl import methods
from fastssl.train import checkpoint as checkpoints
from fastssl.train.folder import RunFolder

METHOD = '''
"""Made up for a test (arXiv:0000.00000)."""

from dataclasses import dataclass

from fastssl.data import plans
from fastssl.methods.base import Method


@dataclass(frozen=True)
class Config:
    """None."""


class {name}(Method):
    Config = Config
    modality = "{modality}"
    recipe = {{"media": {media}}}
{plan}
    def forward(self, views):
        {forward}
'''
PLAN = """
    @classmethod
    def view_plan(cls, size):
        return plans.simclr(size)
"""
FORWARDS = {
    "video": """if views[0].shape[1:3] != (3, 3):
            raise ValueError(f"three frames of three channels are needed; got {views[0].shape[1:3]}")
        first, second = (self.encoder(view.flatten(0, 1)) for view in views)
        return (first - second).square().mean()""",
    "audio": """(windows,) = views
        return self.encoder(windows.view(-1, 1, 16, 16).expand(-1, 3, -1, -1)).square().mean()""",
}


@pytest.fixture(autouse=True)
def made_up(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path_factory.mktemp("methods")
    for name, modality, media in (("clipped", "video", {"frames": 3}), ("heard", "audio", {"samples": 256})):
        plan = PLAN if modality == "video" else ""
        text = METHOD.format(name=name.title(), modality=modality, media=media, plan=plan, forward=FORWARDS[modality])
        (folder / f"{name}.py").write_text(text.lstrip())
        monkeypatch.delitem(sys.modules, f"fastssl.methods.{name}", raising=False)
    monkeypatch.setattr(methods, "__path__", [*methods.__path__, str(folder)])


@needs_av
def test_a_method_for_videos_is_trained_on_clips_and_its_report_shows_frames(run: Run, tmp_path: Path) -> None:
    write_video(tmp_path / "films" / "a.mp4", 40, options={"g": "12", "bf": "2"})
    (tmp_path / "films" / "b.mp4").write_bytes(b"no video")
    words = ["pretrain", "clipped", "--data", "films", *QUICK]
    outcome = run(*words, "--batch_size", 4, "--out", "run")
    assert outcome.code == 0
    assert "films: 13 clips of 1 video\n" in outcome.err
    assert "b.mp4: " in outcome.err
    assert "not scored: give labelled images to fastssl evaluate run --data" in outcome.out
    assert checkpoints.load(RunFolder(Path("run")).checkpoint).data.startswith("13 clips, ")
    page = Path("run/report.html").read_text()
    assert "saw 13 clips of 3 frames of" in page
    assert "<span>clips a second, in batches of 4" in page
    assert "Videos have no labels, so there is nothing to score against: give labelled images" in page
    assert "b.mp4" in page
    assert run("report", "run").code == 0
    assert "have no labels to score its encoder on: give labelled images by --data" in run("evaluate", "run").error()
    write_images(tmp_path / "photos", {"cat": 6, "dog": 6})
    assert run("evaluate", "run", "--data", "photos").code == 0
    said = run(*words, "--batch_size", 4, "--out", "other", "--media.frames", "4").error()
    assert "the views do not suit the method: three frames of three channels are needed" in said


def test_folders_of_images_taken_for_videos_are_said_to_be_that(run: Run, tmp_path: Path) -> None:
    write_images(tmp_path / "photos", {"cat": 9, "dog": 9})
    said = run("pretrain", "clipped", "--data", "photos", "--batch_size", 99, "--out", "run", *QUICK[:-4])
    assert "photos: 6 clips of 2 videos of 9 frames, each a folder of images\n" in said.err
    write_images(tmp_path / "more", {"cat": 9, "dog": 12})
    said = run("pretrain", "clipped", "--data", "more", "--batch_size", 99, "--out", "run", *QUICK[:-4])
    assert "more: 7 clips of 2 videos of 9 to 12 frames, each a folder of images\n" in said.err


@pytest.mark.filterwarnings("ignore:.*cannot be read")
@pytest.mark.parametrize(("archive", "write"), [("films.zip", write_zip), ("films.tar", write_tar)])
def test_a_report_shows_frames_of_an_archive_too(archive: str, write: Callable[..., Path], run: Run) -> None:
    films = write_frames(Path("films"), {str(i): 6 for i in range(6)})
    (films / "3" / "0.jpg").write_bytes(b"no image")
    write(Path(archive), {str(path.relative_to(films)): path.read_bytes() for path in sorted(films.rglob("*.jpg"))})
    outcome = run("pretrain", "clipped", "--data", archive, *QUICK, "--batch_size", 4, "--out", "run")
    assert outcome.code == 0
    assert outcome.err.splitlines()[-1] == "skipped 1 that cannot be read, all named in the report"
    drawn = Path("run/report.html").read_text()
    assert "saw 12 clips of 3 frames of" in drawn
    assert "3, from frame 0" in drawn
    Path("run/report.html").unlink()
    assert run("report", "run").code == 0
    assert "3, from frame 0" in Path("run/report.html").read_text()


def test_a_method_for_audio_is_trained_on_windows_and_resumed(run: Run, tmp_path: Path) -> None:
    pytest.importorskip("soundfile", reason="the package soundfile is not installed")
    for i in range(9):
        write_wav(tmp_path / "tones" / f"{i}.wav", ramp(300, i))
    outcome = run("pretrain", "heard", "--data", "tones", "--out", "run", *QUICK, "--batch_size", 4)
    assert outcome.code == 0
    assert "tones: 9 recordings at 8000 Hz" in outcome.err
    whole = checkpoints.load(RunFolder(Path("run")).checkpoint)
    assert whole.data.startswith("9 recordings, ")
    shutil.copytree("run", "half")
    halved = run("pretrain", "--out", "half", "--resume")
    assert halved.code == 0
    again = checkpoints.load(RunFolder(Path("half")).checkpoint)
    assert all(torch.equal(again.model[name], whole.model[name]) for name in whole.model)
    assert [json.loads(line)["step"] for line in Path("run/metrics.jsonl").read_text().splitlines()] == [1, 2, 3, 4]
    assert "take the encoder of waveforms out by fastssl export run" in outcome.out
    assert "was trained on recordings" in run("report", "run").error()
    for words in (("evaluate", "run", "--data", "photos"), ("embed", "run", "photos", "--out", "f.npz")):
        assert "heard learns from recordings, and its encoder takes no images" in run(*words).error()
    assert "no views are made" in run("pretrain", "heard", "--views", "simclr", *QUICK).error()


def test_data_for_other_methods_is_refused_in_a_sentence(run: Run, tmp_path: Path) -> None:
    write_wav(tmp_path / "tones" / "0.wav", ramp(300))
    (tmp_path / "films").mkdir()
    (tmp_path / "films" / "a.mp4").write_bytes(b"a film")
    said = run("pretrain", "simclr", "--data", "films", *QUICK).error()
    assert "'films' holds videos, and simclr takes images: take a method for them (clipped, video_colorization)" in said
    assert "or give it images" in said
    said = run("pretrain", "simclr", "--data", "films/a.mp4", *QUICK).error()
    assert "'films/a.mp4' holds videos, and simclr takes images" in said
    said = run("pretrain", "clipped", "--data", "tones", *QUICK).error()
    assert "'tones' holds recordings, and clipped takes videos" in said
    said = run("pretrain", "heard", "--data", write_images(tmp_path / "photos", {"cat": 2}), *QUICK).error()
    assert "holds images, and heard takes recordings" in said
    assert not Path("runs").exists()
