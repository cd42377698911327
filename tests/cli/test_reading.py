"""The cache and the engines as the commands use them."""

from __future__ import annotations

import base64
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from cli_helpers import QUICK, Run, write_images
from PIL import Image
from rich.console import Console

from fastssl.cli import console
from fastssl.cli.reading import cache, cache_folder
from fastssl.train import checkpoint as checkpoints
from fastssl.train import log
from fastssl.train.folder import RunFolder


@pytest.mark.parametrize(
    ("given", "folder"),
    [
        ({"FASTSSL_CACHE": "/own", "XDG_CACHE_HOME": "/xdg"}, "/own"),
        ({"FASTSSL_CACHE": "", "XDG_CACHE_HOME": "/xdg"}, "/xdg/fastssl"),
        ({"XDG_CACHE_HOME": "relative"}, "/home/somebody/.cache/fastssl"),
        ({}, "/home/somebody/.cache/fastssl"),
    ],
)
def test_where_images_are_kept(given: dict[str, str], folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FASTSSL_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"HOME": "/home/somebody", **given}.items():
        monkeypatch.setenv(name, value)
    assert cache_folder() == Path(folder)


@pytest.mark.parametrize(
    ("option", "variable", "limit"), [(None, None, 50), (None, "2.5", 2.5), (1.0, "2.5", 1), (0.0, None, 0)]
)
def test_how_much_may_be_kept(
    option: float | None, variable: str | None, limit: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FASTSSL_CACHE_LIMIT", raising=False)
    if variable is not None:
        monkeypatch.setenv("FASTSSL_CACHE_LIMIT", variable)
    found = cache(no_cache=False, limit=option)
    assert found is not None
    assert found.limit == limit * 1e9
    assert cache(no_cache=True, limit=option) is None


def test_a_limit_that_is_no_amount_is_refused(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "amounts in GB, such as 20" in run("pretrain", *QUICK, "--cache_limit", "-1").error()
    monkeypatch.setenv("FASTSSL_CACHE_LIMIT", "much")
    assert "amounts in GB, such as 20" in run("pretrain", *QUICK).error()


def test_info_tells_what_is_kept(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTSSL_CACHE", "kept")
    told = " ".join(run("info").out.split())
    assert "decoded images kept: 0 sets of images, 0.0 kB; at most 50.0 GB" in told


def test_who_has_no_home_has_no_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> Path:
        raise RuntimeError("no home")

    for name in ("FASTSSL_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", fail)
    assert cache_folder() is None


def test_a_second_run_starts_from_the_cache_and_ends_at_the_same_weights(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "kept"
    monkeypatch.setenv("FASTSSL_CACHE", str(folder))
    monkeypatch.setattr("fastssl.report._NEEDS", ("no_such_module",))  # the report is not what is tested
    write_images(tmp_path / "photos", {"cat": 10, "dog": 10})
    words = ["pretrain", "--data", "photos", *QUICK, "--out"]
    assert run(*words, "without", "--no_cache").code == 0
    assert not folder.exists()
    first, second = run(*words, "first"), run(*words, "second")
    (kept,) = folder.iterdir()
    assert f"keeping 20 images of 16 x 16, 15.4 kB, in {kept} for the next start, as they are decoded" in first.err
    assert f"20 images of 16 x 16, 15.4 kB, from {kept} (remove it whenever you like; --no_cache" in second.err
    found = [checkpoints.load(RunFolder(Path(name)).checkpoint) for name in ("without", "first", "second")]
    for other in found[1:]:
        assert other.data == found[0].data
        assert all(torch.equal(other.model[name], found[0].model[name]) for name in other.model)
    monkeypatch.setattr("fastssl.data.rows.read_each", None)
    assert run("evaluate", "first").code == 0
    assert run("embed", "first", "photos", "--out", "features.npz").code == 0


def test_a_terminal_is_told_how_many_images_are_read(
    run: Run, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FASTSSL_CACHE", str(tmp_path / "kept"))  # another test may have kept these images
    shown = io.StringIO()
    monkeypatch.setattr(console, "_err", Console(file=shown, force_terminal=True, width=200, highlight=False))
    assert run("pretrain", "--data", photos, "--out", "run", *QUICK).code == 0
    told = re.findall(r"(\d+) of 30 images read", shown.getvalue())
    assert told[0] == "8"  # those that were tried to see that there are any; the others are read in the first epoch
    assert "0/?" not in shown.getvalue()


def test_without_a_test_image_that_can_be_read_the_run_is_whole_but_for_scores(run: Run, tmp_path: Path) -> None:
    write_images(tmp_path / "photos" / "train", {"cat": 12, "dog": 12})
    for kind in ("cat", "dog"):
        (tmp_path / "photos" / "test" / kind).mkdir(parents=True)
        (tmp_path / "photos" / "test" / kind / "broken.png").write_bytes(b"not a picture")
    outcome = run("pretrain", "--data", "photos", "--out", "run", *QUICK)
    assert outcome.code == 0
    assert "not scored: none of the test images can be read" in outcome.out
    assert RunFolder(Path("run")).report.exists()


def test_streaming_keeps_no_image_and_scores_them_all_the_same(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fastssl.data.rows.InMemory", None)
    photos = write_images(tmp_path / "photos", {"cat": 12, "dog": 12})
    (photos / "cat" / "broken.png").write_bytes(b"not a picture")
    outcome = run("pretrain", "--data", "photos", "--out", "run", "--engine", "stream", *QUICK)
    assert outcome.code == 0
    (line,) = [line for line in outcome.err.splitlines() if "broken.png" in line]
    assert line.startswith("'cat/broken.png' cannot be read (not an image in a format that can be read): ")
    assert outcome.err.splitlines()[-1] == "skipped 1 that cannot be read, all named in the report"
    assert "% waiting for data)" in outcome.err
    folder = RunFolder(Path("run"))
    assert len(json.loads(folder.scores.read_text())["rows"]) == 3
    assert all(0 < row.waiting < 1 for row in log.read(folder.metrics) if row.waiting is not None)
    page = folder.report.read_text()
    assert "cat/broken.png" in page
    assert "% of the time went by waiting for views" in page
    again = run("report", "run")
    assert again.code == 0
    assert again.err.splitlines()[-1] == "skipped 1 that cannot be read, all named in the report"
    assert again.err.count("broken.png") == 1


def test_the_report_of_a_streamed_run_shows_views_of_whole_files(run: Run, tmp_path: Path) -> None:
    """What an image in memory lacks: the ends of a wide one."""
    for name in ("cat", "dog"):
        (tmp_path / "wide" / name).mkdir(parents=True)
        for i in range(6):
            pixels = np.full((16, 64, 3), 20 * i, np.uint8)
            pixels[:, :20] = 255, 0, 0
            Image.fromarray(pixels).save(tmp_path / "wide" / name / f"{i}.png")
    whole = [
        "--plan.crop_scale",
        "1",
        "1",
        "--plan.crop_ratio",
        "4",
        "4",
        "--plan.jitter",
        "0",
        "--plan.grayscale",
        "0",
    ]
    assert run("pretrain", "--data", "wide", "--out", "run", "--engine", "stream", *QUICK, *whole).code == 0
    page = RunFolder(Path("run")).report.read_text()
    shown = page[page.index("What the encoder was shown") :]
    tiles = [
        np.asarray(Image.open(io.BytesIO(base64.b64decode(data)))) for data in re.findall(r"base64,([^\"]+)", shown)
    ]
    assert {tile.shape for tile in tiles} == {(16, 64, 3), (16, 16, 3)}
    assert all(tuple(tile[8, 1]) == (255, 0, 0) or tuple(tile[8, -2]) == (255, 0, 0) for tile in tiles)


@pytest.mark.parametrize("engine", ["stream", "dali"])
def test_an_engine_refuses_what_can_only_be_read_forwards(run: Run, tmp_path: Path, engine: str) -> None:
    import tarfile

    with tarfile.open(tmp_path / "photos.tar.gz", "w:gz") as archive:
        archive.add(write_images(tmp_path / "photos", {"cat": 10, "dog": 10}), "photos")
    if engine == "dali":
        pytest.importorskip("nvidia.dali", reason="DALI is not installed")
    outcome = run("pretrain", "--data", "photos.tar.gz", "--out", "run", "--engine", engine, *QUICK)
    refused = f"'photos.tar.gz' is a compressed tar, and the engine '{engine}' reads single files in any order"
    assert refused in outcome.error()
    assert not Path("run").exists()
