"""Signs of a collapse: what is logged and when, and that runs made to collapse are seen to, and others not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from fastssl.data.images import Splits
from fastssl.eval.spread import effective_rank, feature_std
from fastssl.methods.dino import DINO
from fastssl.methods.simsiam import SimSiam
from fastssl.train import config as configs
from fastssl.train import health, log
from fastssl.train.config import RunConfig
from fastssl.train.folder import RunFolder
from fastssl.train.health import CollapseWatch
from fastssl.train.loop import build_method, pretrain

Trained = Callable[..., tuple[list[str], list[dict[str, float]]]]


@pytest.fixture
def trained(config: RunConfig, splits: Splits, folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> Trained:
    """Trains a method; returns the warnings that were given, and the signs that were logged."""
    monkeypatch.setattr(health, "EVERY", 5)

    def trained(method: str, **settings: object) -> tuple[list[str], list[dict[str, float]]]:
        base = {**configs.to_dict(replace(config, epochs=30)), "method": method, "eval_every": 0}
        base.pop("simclr")
        given: list[str | None] = []
        run = configs.from_dict({**base, **settings})
        pretrain(run, splits, folder, watch=lambda progress: given.append(progress.warning))
        rows = [dict(row.extra) for row in log.read(folder.metrics) if "feature_std" in row.extra]
        return [warning for warning in given if warning], rows

    return trained


def test_signs_are_those_of_the_features_that_the_step_computed(config: RunConfig, splits: Splits) -> None:
    method = build_method(config)
    watch = CollapseWatch(method)
    seen: list[Tensor] = []
    for part in (method.encoder, method.head):
        part.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    views = [torch.randn(8, 3, 16, 16), torch.randn(8, 3, 16, 16)]
    with watch.forward(0):
        method(views)
    assert len(seen) == 2  # nothing is computed for it
    expected = {}
    for name, output in zip(("feature", "output"), seen, strict=True):
        centred = output - output.mean(0) if name == "output" else output
        expected |= {f"{name}_std": feature_std(output), f"{name}_rank": effective_rank(centred)}
    assert watch.signs() == pytest.approx(expected, rel=1e-4)
    assert len(method.encoder._forward_hooks) == len(method.head._forward_hooks) == 1
    with watch.forward(1):
        method(views)
    assert watch.signs() == {}


def test_every_look_is_a_row_of_the_log_and_a_line_of_the_table(trained: Trained, folder: RunFolder) -> None:
    _, rows = trained("simclr")
    assert len(rows) == 18  # of 90 steps
    assert all(0 < row["feature_std"] <= 1 for row in rows)
    lines = folder.table.read_text().splitlines()
    place = lines[0].split(",").index("feature_rank")
    told = [line.split(",")[place] for line in lines[1:]]
    assert [bool(cell) for cell in told] == [step % 5 == 0 for step in range(90)]


@pytest.mark.parametrize("method", ["simclr", "byol", "simsiam", "vicreg", "barlow_twins", "moco"])
def test_healthy_runs_are_not_warned_of(method: str, trained: Trained) -> None:
    warnings, rows = trained(method)
    assert warnings == []
    assert len(rows) == 18


def without_stopped_gradient(self: SimSiam, views: list[Tensor]) -> Tensor:
    z0, z1 = (self.projector(self.encoder(view)) for view in views)
    loss: Tensor = self.loss(self.predictor(z0), z1) / 2 + self.loss(self.predictor(z1), z0) / 2
    return loss


def test_simsiam_without_the_stopped_gradient_collapses(trained: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SimSiam, "forward", without_stopped_gradient)
    warnings, rows = trained("simsiam", epochs=100)
    (warning,) = warnings
    assert "all images are nearly alike in what is compared" in warning
    assert "Likely the predictor does not keep up" in warning
    assert rows[-1]["output_rank"] < 2 < 8 < rows[0]["output_rank"]


SMALL_DINO = {
    "encoder": "resnet18",
    "optim": {"name": "adamw", "lr": 1e-3, "warmup_epochs": 1},
    "plan": {"local": {"views": 2}},
}


def uncentred(self: DINO, progress: float) -> None:
    self.teacher.update(self.student, momentum=self.now["momentum"])
    self.loss.center.zero_()


def test_dino_without_centering_says_one_thing_of_all(trained: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DINO, "after_step", uncentred)
    warnings, rows = trained("dino", **SMALL_DINO, dino={"prototypes": 64, "momentum": {"start": 0.9}})
    (warning,) = warnings
    assert "one output" in warning
    assert "--dino.center_momentum" in warning
    assert rows[-1]["teacher_information"] < 1e-4 < 0.1 < rows[0]["teacher_information"]


def test_dino_without_sharpening_says_nothing(trained: Trained) -> None:
    blunt = {"prototypes": 64, "teacher_temp": {"start": 0.5, "end": 0.5}, "momentum": {"start": 0.9}}
    warnings, _ = trained("dino", **SMALL_DINO, dino=blunt)
    (warning,) = warnings
    assert "uniform output" in warning
    assert "--dino.teacher_temp" in warning


def test_dino_that_tells_images_apart_is_not_warned_of(trained: Trained) -> None:
    even = {"prototypes": 64, "centering": "sinkhorn", "momentum": {"start": 0.9}}
    warnings, rows = trained("dino", **SMALL_DINO, dino=even)
    assert warnings == []
    assert all(row["teacher_information"] > 1e-4 for row in rows)
