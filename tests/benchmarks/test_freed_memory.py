"""Steps of training with freed memory kept and returned: timed of whole runs, and told on the page of results."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import freed_memory, publish
from benchmarks.scores.cells import Cell

TINY: dict[str, Any] = {"method": "rotation", "image_size": 16, "batch_size": 4, "width": 4, "threads": 1}


def test_the_steps_of_a_cell_are_timed() -> None:
    found = freed_memory.steps(Cell("rotation", "rotation", TINY))
    assert found["milliseconds"] > 0
    assert found["megabytes"] >= 0


def test_both_ways_are_run_by_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def run(name: str, *, kept: bool) -> dict[str, float]:
        asked.append(kept)
        return {"milliseconds": 10.0 + len(asked) + 100 * (not kept), "megabytes": 50.0}

    monkeypatch.setattr(freed_memory, "in_a_process", run)
    row = freed_memory.row_of("simclr")
    assert asked == [True, False] * freed_memory.TURNS
    assert row["kept"] == {"milliseconds": 13.0, "megabytes": 50.0}
    assert row["returned"] == {"milliseconds": 114.0, "megabytes": 50.0}


def test_the_page_says_how_much_faster(tmp_path: Path) -> None:
    path = tmp_path / "freed_memory.json"
    assert freed_memory.section(path) == []
    ways = {
        "kept": {"milliseconds": 100.0, "megabytes": 300.0},
        "returned": {"milliseconds": 125.0, "megabytes": 200.0},
    }
    run = json.loads(publish.demo.RESULT.read_text())["run"]
    path.write_text(json.dumps({"command": "x", "run": run, "rows": [{"name": "simclr", **ways}]}))
    assert "| `simclr` | 100 | 125 | 1.25 | 300 | 200 |" in freed_memory.section(path)[2]
