"""The table of scores: cells are trained once, go on where they were stopped, and the page says what they came to."""

from __future__ import annotations

import json
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from benchmarks import publish, summary
from benchmarks.scores import __main__ as command
from benchmarks.scores import cells, table, train
from benchmarks.scores.cells import Ablation, Cell
from benchmarks.scores.table import Results
from benchmarks.scores.train import Clock, Data
from fastssl import methods
from fastssl.errors import UserError
from fastssl.eval import FinetuneConfig
from fastssl.eval.protocol import RANDOM, TRAINED
from fastssl.train import config as configs

TINY: dict[str, Any] = {"epochs": 2, "batch_size": 8, "image_size": 16, "threads": 1, "width": 4}
QUICK = FinetuneConfig(epochs=2, least_steps=1, batch_size=8)


@pytest.fixture
def data(tmp_path: Path) -> Data:
    """Two classes of 12 images for training and 6 for testing."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 12), ("test", 6)):
        for shade, name in enumerate(("dark", "light")):
            folder = tmp_path / "photos" / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(100 * shade, 100 * shade + 100, (16, 16, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{i}.png")
    return Data(str(tmp_path / "photos"), tmp_path / "work")


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cells, "METHODS", {
        "supervised": {**TINY, "encoder": "resnet18", "stem": "cifar"},
        "rotation": {**TINY, "encoder": "resnet18", "stem": "cifar"},
        "mae": {**TINY, "encoder": "vit_micro", "patch_size": 4, "depth": 2, "width": 8},
    })  # fmt: skip
    monkeypatch.setattr(
        cells, "ABLATIONS", {"rotation": (Ablation("no-flip", "not flipped", {"plan": {"flip": 0.0}}),)}
    )
    monkeypatch.setattr(cells, "TUNED", (0, 1, "all"))
    monkeypatch.setattr(train, "SUPERVISION", QUICK)
    monkeypatch.setattr(train, "TUNING", QUICK)


def run(wanted: list[Cell], data: Data, tmp_path: Path, minutes: float = 10, seeds: int = 2) -> bool:
    return command.run(wanted, seeds, data, tmp_path / "work", tmp_path / "out", Clock(minutes))


def test_every_cell_is_trained_scored_and_published(data: Data, tmp_path: Path) -> None:
    assert run(command.chosen(None, ablations=False), data, tmp_path)
    assert run(command.chosen("rotation", ablations=True), data, tmp_path)
    found = table.read(tmp_path / "out")
    assert [each.name for each in found] == ["mae", "rotation", "rotation.no-flip", "supervised"]
    for each in found:
        assert [row["seed"] for row in each.rows] == [0, 1]
        assert all(0 <= row[features][probe] <= 1 for row in each.rows for features in (TRAINED, RANDOM)
                   for probe in ("knn", "linear"))  # fmt: skip
        assert each.told["settings"]["data"] == "photos"  # and no folder of this machine
        assert str(tmp_path) not in json.dumps(each.told)
    mae, rotation, _, supervised = found
    assert rotation.rows[0]["pretext"]["chance"] == 0.25
    assert rotation.rows[0]["steps"] == 2 * 3
    assert supervised.rows[0]["pretext"]["chance"] == 0.5
    assert [(row["features"], row["tuned"]) for row in mae.rows[0]["tuned"]] == [
        (TRAINED, 0),
        (TRAINED, 1),
        (TRAINED, "all"),
        (RANDOM, 0),
        (RANDOM, "all"),
    ]
    page = table.page(found)
    assert "| `rotation` | as above |" in page
    assert "|  | not flipped |" in page
    assert "| tuned of the encoder | mae | random start |" in page
    assert page.index("| `rotation` |") < page.index("| `supervised` |")


def test_what_is_done_is_not_done_again(data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = command.chosen("rotation", ablations=False)
    assert run(wanted, data, tmp_path, seeds=1)
    done: list[int] = []

    def counted(cell: Cell, seed: int, *rest: Any) -> dict[str, Any]:
        done.append(seed)
        return train.row_of(cell, seed, *rest)

    monkeypatch.setattr(command, "row_of", counted)
    assert run(wanted, data, tmp_path, seeds=2)
    assert done == [1]
    other = [Cell("rotation", "rotation", {**wanted[0].settings, "epochs": 1})]
    assert run(other, data, tmp_path, seeds=1)
    assert done == [1, 0]  # other settings: the rows of the old ones are gone
    assert len(table.read(tmp_path / "out")[0].rows) == 1


@pytest.mark.parametrize("name", ["rotation", "supervised", "mae"])
def test_a_cell_that_is_stopped_goes_on_to_the_same_scores(
    name: str, data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = command.chosen(name, ablations=False)
    assert run(wanted, data, tmp_path, seeds=1)
    (whole,) = table.read(tmp_path / "out")
    other, pieces, done = Data(data.source, tmp_path / "other"), 0, False
    while not done and pieces < 40:
        looks = iter([False] * (2 + pieces))  # over a little later each time
        with monkeypatch.context() as patched:
            patched.setattr(Clock, "over", property(lambda self, looks=looks: next(looks, True)))
            done = command.run(wanted, 1, other, tmp_path / "other", tmp_path / "again", Clock(10))
        pieces += 1
    assert pieces > 1
    (again,) = table.read(tmp_path / "again")
    for row in (*whole.rows, *again.rows):
        row.pop("seconds", None)
    assert again.rows == whole.rows


def row(seed: int, trained: float, untrained: float, accuracy: float | None = 0.8, **more: Any) -> dict[str, Any]:
    task = {"loss": 0.5, "accuracy": accuracy, "chance": None if accuracy is None else 0.25, "images": 10}
    scores = {TRAINED: {"knn": trained, "linear": trained}, RANDOM: {"knn": untrained, "linear": untrained}}
    return {"seed": seed, "parameters": 100_000, "steps": 970, "seconds": 120.0, "pretext": task, **scores, **more}


def results(name: str, *rows: dict[str, Any], of: str | None = None, what: str = "") -> Results:
    return Results(name, {"method": name, "of": of, "what": what, "run": {"commit": "abc"}, "rows": list(rows)})


def test_a_gain_within_the_spread_is_no_gain() -> None:
    clear = results("a", row(0, 0.50, 0.30), row(1, 0.52, 0.31))
    assert (clear.gain("knn"), clear.above("knn")) == (pytest.approx(20.5), "yes")
    within = results("b", row(0, 0.50, 0.30), row(1, 0.34, 0.31))
    assert (within.gain("knn"), within.above("knn")) == (pytest.approx(11.5), "**no**")
    assert results("c", row(0, 0.5, 0.3)).above("knn") == "one seed"


def test_the_row_of_a_method() -> None:
    told = table.main_table([results("a", row(0, 0.50, 0.30), row(1, 0.52, 0.32))]).splitlines()[-1]
    scores = "51.0 ± 1.4 | 31.0 ± 1.4 | +20.0 | yes"
    assert told == f"| `a` | 80.0 ± 0.0 (25) | {scores} | {scores} | 100,000 | 970 | 2.0 |"
    task = {"loss": 0.4, "accuracy": None, "chance": None, "error": 0.1, "constant": 0.2, "images": 10}
    assert table.task(results("e", row(0, 0.5, 0.3, pretext=task))) == "error 0.100 (0.200)"
    without = table.main_table([results("b", row(0, 0.5, 0.3, None))]).splitlines()[-1]
    assert without.startswith("| `b` | loss 0.500 | 50.0 | 30.0 | +20.0 | one seed |")


def test_an_ablation_is_told_against_its_method() -> None:
    found = [results("a", row(0, 0.5, 0.3)), results("a.x", row(0, 0.45, 0.3, 0.9), of="a", what="no x")]
    base, changed = table.ablation_table(found).splitlines()[-2:]
    assert base == "| `a` | as above | 80.0 (25) | 50.0 |  | 50.0 |  |"
    assert changed == "|  | no x | 90.0 (25) | 45.0 | -5.0 | 45.0 | -5.0 |"
    assert table.ablation_table(found[:1]) == table.NOT_YET


def tuned(probe: float, whole: float) -> list[dict[str, Any]]:
    case = {"labels": 0.1, "seed": 0, "images": 10, "parameters": 1}
    found = [{**case, "features": TRAINED, "tuned": t, "accuracy": a} for t, a in ((0, probe), ("all", whole))]
    return [*found, {**case, "features": RANDOM, "tuned": "all", "accuracy": 0.2}]


@pytest.mark.parametrize(
    ("mae", "contrast", "said"),
    [
        ((0.4, 0.7), (0.5, 0.6), "so it is here."),
        ((0.4, 0.6), (0.5, 0.7), "not found here. By the probe MAE is below the contrast, with all tuned MAE is below"),
        ((0.5, 0.7), (0.5, 0.6), "not found here. By the probe the two are no different, with all tuned MAE is above"),
    ],
)
def test_the_crossover_is_found_or_said_not_to_be(mae: Any, contrast: Any, said: str) -> None:
    found = [
        results("mae", row(0, 0.5, 0.3, tuned=tuned(*mae))),
        results("simclr.vit", row(0, 0.5, 0.3, tuned=tuned(*contrast)), of="simclr", what="ViT"),
    ]
    told = "\n".join(table.tuned_section(found))
    assert said in told
    assert "| tuned of the encoder | mae | simclr.vit | random start |" in told
    assert told.splitlines()[-1] == f"| all | {100 * mae[1]:.1f} | {100 * contrast[1]:.1f} | 20.0 |"


def test_names_of_cells() -> None:
    assert [cell.name for cell in command.chosen("rotation,mae", ablations=False)] == ["rotation", "mae"]
    assert [cell.name for cell in command.chosen("rotation", ablations=True)] == ["rotation.no-flip"]
    assert [cell.name for cell in command.chosen("simclr.vit", ablations=True)] == ["simclr.vit"]
    with pytest.raises(UserError, match="did you mean 'rotation'"):
        command.chosen("rotatoin", ablations=False)


def test_the_page_is_made_of_the_results_as_they_are() -> None:
    found = table.read()
    assert (publish.DOCS / "scores.md").read_text() == table.page(found), "run python -m benchmarks.publish"
    assert all(machine.folder != "scores" for machine in summary.machines(summary.RESULTS))


@pytest.mark.parametrize("name", [each.name for each in table.read() if each.told["of"] is None])
def test_a_methods_recipe_says_its_score(name: str) -> None:
    (each,) = (each for each in table.read() if each.name == name)
    for path, text in publish.recipes([each]).items():
        assert path.read_text() == text, "run python -m benchmarks.publish"
        knn = statistics.fmean(row[TRAINED]["knn"] for row in each.rows)
        assert f"--config benchmarks/recipes/{each.images}/{each.told['method']}.yaml --data" in text
        assert f"kNN {100 * knn:.1f}" in text


class TestRealCells:
    """Those that are measured, not the tiny ones."""

    @pytest.fixture(autouse=True)
    def tiny(self) -> None:
        """As they are."""

    def test_every_cell_has_a_run_and_names_are_unique(self) -> None:
        found = [*cells.cells(ablations=False), *cells.cells(ablations=True)]
        assert len({cell.name for cell in found}) == len(found)
        learn_from_films_and_recordings = {"video_colorization", "cpc_audio"}
        methods_of_images = {*methods.names()} - learn_from_films_and_recordings
        assert {cell.method for cell in found} == {*methods_of_images, cells.SUPERVISED}
        for cell in found:
            config = cell.config("photos", 1)
            assert (config.method, config.seed, config.data) == (cell.settings.get("method", "simclr"), 1, "photos")
            if cell.of is not None:
                own, base = (
                    Cell("", cell.method, s).config("cifar10", 1) for s in (cell.settings, cells.METHODS[cell.of])
                )
                assert own != base

    @pytest.mark.parametrize("images", cells.IMAGES)
    def test_a_recipe_is_what_its_cell_trains(self, images: str) -> None:
        """All but what a cell changes: no score meanwhile, and two threads."""
        paths = sorted((cells.RECIPES / images).glob("*.yaml"))
        found = {cell.method: cell for cell in command.chosen(None, images=images)}
        assert paths
        for path in paths:
            config = configs.read(path)
            assert config.method == path.stem
            assert replace(config, **cells.COMMON) == found[path.stem].config(config.data, config.seed)
