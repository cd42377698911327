"""Our methods train as lightly's modules do: the same losses, step by step."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from other_libraries import load_or_skip

from benchmarks import publish
from benchmarks.scores import side_by_side
from benchmarks.scores.side_by_side import OURS, ROUNDED, THEIRS, Case
from fastssl.data.images import ImageSet, Splits

STEPS = 12  # MoCo's queue of two batches goes round
# at a higher rate a rounding of float32 grows tenfold in two steps, whichever library trains
SLOW = {**side_by_side.SGD, "lr": 0.01}
ENCODER = {"encoder": "resnet18", "stem": "cifar", "width": 4}
TINY: dict[str, Any] = {**ENCODER, "image_size": 16, "batch_size": 8, "threads": 1, "optim": SLOW}
# temperatures that float32, in which lightly has DINO's, holds
DINO: dict[str, Any] = {
    "prototypes": 32,
    "momentum": {"start": 0.9},
    "train_prototypes": {"start": 1.0, "end": 1.0},
    "teacher_temp": {"start": 0.0625, "end": 0.0625},
    "student_temp": 0.125,
}
CASES = {
    "simclr": Case("simclr", STEPS, TINY),
    "moco": Case("moco", STEPS, {**TINY, "moco": {"queue": 16, "batch_norm": "whole", "momentum": {"start": 0.9}}}),
    "dino": Case("dino", STEPS, {**TINY, "plan": {"local": {"views": 1}}, "dino": DINO}),
}


@pytest.fixture(autouse=True)
def lightly() -> None:
    load_or_skip("lightly.loss")


@pytest.fixture
def splits() -> Splits:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (24, 3, 16, 16), dtype=torch.uint8, generator=generator)
    return Splits(ImageSet(pixels, None, (), tuple(map(str, range(24))), "noise"), None)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize(("dtype", "steps", "rel"), [(torch.float64, STEPS, 1e-9), (torch.float32, STEPS // 2, 1e-3)])
def test_losses_are_lightlys_step_by_step(
    name: str, dtype: torch.dtype, steps: int, rel: float, splits: Splits
) -> None:
    sides = side_by_side.trained(CASES[name].config("noise"), splits, steps, dtype=dtype)
    ours, theirs, rounded = (sides[provider].losses for provider in (OURS, THEIRS, ROUNDED))
    assert theirs == pytest.approx(ours, rel=rel)
    assert rounded == pytest.approx(ours, rel=rel)
    assert max(ours) - min(ours) > 10 * rel * max(ours)  # the curve is far from flat


def test_a_side_that_differs_is_seen(splits: Splits) -> None:
    config = CASES["simclr"].config("noise")
    sides = {name: side_by_side.Side(m, config, STEPS) for name, m in side_by_side.methods_of(config).items()}
    sides[THEIRS]._method.loss.temperature = 0.4
    for views, _ in zip(side_by_side.views_of(config, splits), range(2), strict=False):
        for side in sides.values():
            side.step(views)
    assert sides[THEIRS].losses != pytest.approx(sides[OURS].losses, rel=1e-2)


def test_what_is_done_is_published_and_not_done_again(
    splits: Splits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(side_by_side, "CASES", {"simclr": CASES["simclr"]})
    monkeypatch.setattr(side_by_side.Data, "_splits", lambda _self, _size: splits)
    monkeypatch.setattr(side_by_side, "in_own_process", lambda *_: 12.5)
    out = tmp_path / "out.json"
    monkeypatch.setattr("sys.argv", ["", "--data", "noise", "--out", str(out), "--work", str(tmp_path)])
    assert side_by_side.main() == 0
    (row,) = json.loads(out.read_text())["rows"]
    assert [side["provider"] for side in row["sides"]] == list(side_by_side.SIDES)
    assert all(len(side["losses"]) == STEPS for side in row["sides"])
    assert str(tmp_path) not in out.read_text()
    page = "\n".join(side_by_side.section(out))
    assert f"| simclr | {STEPS} | 8 | {row['sides'][0]['losses'][0]:.4f} |" in page
    assert [line for line in page.splitlines() if line.endswith("| 12 | 12 |")] != []  # MB; times may be 12 too
    capsys.readouterr()
    assert side_by_side.main() == 0
    assert capsys.readouterr().out == "simclr: done\n"


def test_the_memory_of_a_step_is_measured(splits: Splits) -> None:
    config = CASES["moco"].config("noise")
    assert side_by_side.peak_megabytes(config, splits, THEIRS) >= 0


def test_the_page_is_made_of_the_results_as_they_are() -> None:
    told = "\n".join(side_by_side.section())
    assert told in (publish.DOCS / "results.md").read_text(), "run python -m benchmarks.publish"


def test_every_case_is_a_run() -> None:
    for case in side_by_side.CASES.values():
        assert case.config("cifar10").encoder == side_by_side.COMMON["encoder"]
