"""Video colorization and tracking from the command line: trained, scored on videos with masks, used on one's own."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from cli_helpers import QUICK, Run, write_images
from davis_files import HEIGHT, WIDTH, numbers, write_davis
from PIL import Image
from safetensors import safe_open
from video_files import needs_av, write_video

from fastssl import models
from fastssl.cli import main
from fastssl.data.lab import from_rgb
from fastssl.data.masks import read_mask
from fastssl.train.trained import open_run

WORDS = [*QUICK, "--batch_size", "4", "--media.stride", "2"]


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_davis(tmp_path_factory.mktemp("data") / "squares", {"one": (12, 1), "two": (12, 2)})


@pytest.fixture(scope="module")
def colors(films: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "colors"
    data = str(films / "JPEGImages")
    assert main(["pretrain", "video_colorization", "--data", data, "--out", str(folder), *WORDS]) == 0
    return folder


def test_the_run_has_its_recipe_and_its_report_the_colours(colors: Path) -> None:
    config = open_run(colors).config
    assert (config.max_stride, config.media.frames, config.media.stride, config.width) == (8, 4, 2, 8)
    page = (colors / "report.html").read_text()
    assert "What the method makes of clips" in page
    counts = [page.count(f"<figcaption>{name}</figcaption>") for name in ("reference", "seen", "copied", "true")]
    assert counts == [6, 6, 6, 6]
    assert "Tracked masks" not in page


def test_it_is_scored_by_tracking_and_the_report_shows_that(colors: Path, films: Path, run: Run) -> None:
    outcome = run("evaluate", colors, "--data", films, "--track.radius", 4)
    assert outcome.code == 0
    assert "Masks tracked through 2 videos, 20 frames scored" in outcome.out
    assert "gain in J&F, points: " in outcome.out
    scores = json.loads((colors / "scores-squares.json").read_text())
    assert [row["features"] for row in scores["rows"]] == ["trained", "random initialisation", "first mask, unmoved"]
    assert scores["config"]["radius"] == 4
    assert len(scores["rows"][0]["objects"]) == 3
    with Image.open(colors / "tracked-squares.gif") as movie:
        assert movie.n_frames == 6
        assert movie.height == 120
    assert run("report", colors).code == 0
    assert 'src="data:image/gif;base64,' in (colors / "report.html").read_text()


def test_it_is_exported_as_it_is_built(colors: Path, run: Run) -> None:
    assert run("export", colors, "--out", "encoder.safetensors").code == 0
    with safe_open("encoder.safetensors", "pt") as file:
        told = file.metadata()
        weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no dict
    assert (told["architecture"], told["input"]) == ("resnet18", "grey")
    encoder = models.get("resnet18")(**json.loads(told["options"])).eval()
    encoder.load_state_dict(weights, strict=True)
    assert encoder.maps(torch.zeros(1, 3, 64, 64)).shape[2:] == (8, 8)
    grey = torch.rand(1, 1, 32, 32).expand(-1, 3, -1, -1)
    torch.testing.assert_close(encoder(from_rgb(grey)), open_run(colors).encoder(from_rgb(grey)), rtol=1e-3, atol=1e-4)


def test_sequences_may_be_chosen(colors: Path, films: Path, run: Run) -> None:
    Path("val.txt").write_text("two\n")
    assert "through 1 videos" in run("evaluate", colors, "--data", films, "--sequences", "val.txt").out
    Path("val.txt").write_text("three\n")
    said = run("evaluate", colors, "--data", films, "--sequences", "val.txt").error()
    assert "has no sequence 'three': it has one, two" in said
    assert "cannot read the names" in run("evaluate", colors, "--data", films, "--sequences", "none.txt").error()


def test_an_encoder_of_images_is_scored_by_tracking_too(done: Path, films: Path, run: Run) -> None:
    outcome = run("evaluate", done, "--data", films)
    assert outcome.code == 0
    assert "Masks tracked through 2 videos" in outcome.out
    (done / "scores-squares.json").unlink()
    (done / "tracked-squares.gif").unlink()


def test_objects_are_tracked_through_a_folder_of_frames(colors: Path, films: Path, run: Run) -> None:
    mask = films / "Annotations/two/00000.png"
    words = ["track", films / "JPEGImages/two", "--mask", mask, "--checkpoint", colors, "--track.radius", 4]
    outcome = run(*words, "--out", "out/tracked.gif")
    assert outcome.code == 0
    assert "2 objects in 12 frames" in outcome.out
    written = sorted(Path("out/tracked-masks").iterdir())
    assert [path.name for path in written] == [f"{i:05d}.png" for i in range(12)]
    first, last = (read_mask(written[i]) for i in (0, 11))
    assert torch.equal(first.values, torch.from_numpy(numbers(0, 2)))
    assert set(last.values.unique().tolist()) <= {0, 1, 2}
    assert last.palette == read_mask(mask).palette
    with Image.open("out/tracked.gif") as movie:
        assert (movie.n_frames, movie.size) == (6, (WIDTH, HEIGHT))  # of 24 a second every other


@needs_av
def test_objects_of_any_number_are_tracked_through_a_film(colors: Path, run: Run) -> None:
    write_video(Path("film.mp4"), 9)
    mask = np.zeros((32, 48), np.uint8)
    mask[4:20, 6:18], mask[10:30, 30:40] = 7, 200
    Image.fromarray(mask).save("first.png")
    outcome = run("track", "film.mp4", "--mask", "first.png", "--checkpoint", colors, "--out", "tracked.mp4")
    assert outcome.code == 0
    assert Path("tracked.mp4").stat().st_size > 0
    written = sorted(Path("tracked-masks").iterdir())
    assert [path.name for path in written] == [f"{i:05d}.png" for i in range(9)]
    assert read_mask(written[0]).values.tolist() == mask.tolist()
    assert set(read_mask(written[8]).values.unique().tolist()) <= {0, 7, 200}


@needs_av
def test_what_cannot_be_tracked_is_refused_in_a_sentence(colors: Path, films: Path, run: Run) -> None:
    frames, mask = films / "JPEGImages/one", films / "Annotations/one/00000.png"

    def said(video: object = frames, mask: object = mask, out: str = "t.gif") -> str:
        return run("track", video, "--mask", mask, "--checkpoint", colors, "--out", out).error()

    assert "t.avi does not end in .gif or .mp4" in said(out="t.avi")
    assert "no file or folder 'none.mp4'" in said("none.mp4")
    assert "holds 2 folders of images ('one', 'two')" in said(films / "JPEGImages")
    assert "has none of the endings of a video" in said(mask)
    Path("broken.mp4").write_bytes(b"no film")
    assert "'broken.mp4' cannot be read as a video" in said("broken.mp4")
    assert "a picture of " in said(mask=write_images(Path("photos"), {"cat": 1}) / "cat/0.png")
    Image.fromarray(np.ones((10, 20), np.uint8)).save("small.png")
    assert "the mask small.png has 20 x 10 pixels, and the frames of" in said(mask="small.png")
    Image.fromarray(np.zeros((HEIGHT, WIDTH), np.uint8)).save("black.png")
    assert "marks no object" in said(mask="black.png")
    assert not Path("t.gif").exists()
    assert not Path("t-masks").exists()


def test_data_it_cannot_learn_from_is_refused_in_a_sentence(films: Path, run: Run) -> None:
    def said(*words: object) -> str:
        return run("pretrain", "video_colorization", *WORDS, "--out", "refused", *words).error()

    for source in ("one", "two"):
        for path in (films / "JPEGImages" / source).iterdir():
            target = Path("grey") / source / path.name
            target.parent.mkdir(parents=True, exist_ok=True)
            Image.open(path).convert("L").save(target)
    assert "clips of videos that it saw are all grey" in said("--data", "grey")
    assert "no clip of 4 frames" in said("--data", films / "JPEGImages", "--media.stride", 8)
    for i in range(20):
        path = Path("photos/cat") / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (30 + i, 40), (10 * i, 0, 90)).save(path)
    assert "its images differ in size, so they are no frames of a video" in said("--data", "photos")
    assert not Path("refused/checkpoint.pt").exists()
