"""The script that trains on half of DAVIS: every video is tracked by a network that never saw it, and nothing twice."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from davis_files import write_davis

from benchmarks import publish
from benchmarks.scores import davis
from fastssl.eval.tracking import TrackConfig

TINY: dict[str, Any] = {
    "method": "video_colorization",
    "width": 4,
    "image_size": 16,
    "epochs": 2,
    "batch_size": 4,
    "media": {"frames": 3, "stride": 1, "every": 1},
    "threads": 1,
}


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(davis, "SETTINGS", TINY)
    monkeypatch.setattr(davis, "TRACKING", TrackConfig(radius=3))
    return write_davis(tmp_path / "davis", dict.fromkeys("abcd", (5, 1)))


def run(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    out, work = tmp_path / "davis.json", tmp_path / "work"
    given = ["davis", "--data", str(data), "--seeds", "1", "--out", str(out), "--work", str(work), *words]
    monkeypatch.setattr(sys, "argv", given)
    return davis.main()


def test_each_half_is_tracked_by_what_learnt_from_the_other(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(data, tmp_path, monkeypatch) == 0
    report = json.loads((tmp_path / "davis.json").read_text())
    first, second = report["rows"]
    assert (first["trained_on"], second["trained_on"]) == (["a", "c"], ["b", "d"])
    assert [item["sequence"] for item in first["objects"]["trained"]] == ["b", "d"]
    assert [item["sequence"] for item in second["objects"]["trained"]] == ["a", "c"]
    (scores,) = davis.overall(report["rows"]).values()
    every = [item for row in (first, second) for item in row["objects"]["trained"]]
    assert scores["trained"] == pytest.approx(sum(item["j"] + item["f"] for item in every) / 8)
    assert str(tmp_path) not in json.dumps(report["settings"])
    page = "\n".join(publish.tracking(tmp_path / "davis.json"))
    assert f"| 0 | {100 * scores['trained']:.1f} |" in page
    assert "all objects of 4 sequences" in page
    assert publish.tracking(tmp_path / "none.json") == []
    capsys.readouterr()
    assert run(data, tmp_path, monkeypatch) == 0
    assert "trained on the" not in capsys.readouterr().out  # nothing was done again


def test_it_stops_when_its_minutes_are_over_and_goes_on(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(data, tmp_path, monkeypatch, "--minutes", "0") == 1
    assert not (tmp_path / "davis.json").exists()
    monkeypatch.setattr(davis.Clock, "over", property(lambda clock: True))
    with pytest.raises(KeyboardInterrupt, match="stopped after step 1 of"):
        davis.row_of(str(data), 0, "first", tmp_path / "work", davis.Clock(1))
    monkeypatch.undo()
    monkeypatch.setattr(davis, "SETTINGS", TINY)
    assert run(data, tmp_path, monkeypatch) == 0
    lines = (tmp_path / "work/first-0/metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(1, 1 + len(lines)))
