"""A folder of images and a run on it, made by the command itself."""

from __future__ import annotations

from pathlib import Path

import pytest
from cli_helpers import QUICK, Outcome, Run, write_images

from fastssl.cli import main


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """``run("pretrain", ...)``: the command line, in a working folder of its own."""
    monkeypatch.chdir(tmp_path)

    def call(*words: object) -> Outcome:
        code = main([str(word) for word in words])
        return Outcome(code, *capsys.readouterr())

    return call


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes, 30 images, 24 of them for training."""
    return write_images(tmp_path_factory.mktemp("data") / "photos", {"cat": 10, "dog": 10, "owl": 10})


@pytest.fixture(scope="session")
def done(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run; tests leave it as it is."""
    folder = tmp_path_factory.mktemp("runs") / "done"
    assert main(["pretrain", "simclr", "--data", str(photos), "--out", str(folder), *QUICK]) == 0
    return folder
