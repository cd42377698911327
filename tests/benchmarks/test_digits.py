"""The script that trains on spoken digits: what is probed was never trained on, and nothing is done twice."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from wav_files import write_wav

from benchmarks.scores import digits
from fastssl.eval.protocol import RANDOM, TRAINED

TINY: dict[str, Any] = {
    "method": "cpc_audio",
    "media": {"samples": 640},
    "width": 8,
    "max_stride": 20,
    "batch_size": 4,
    "epochs": 2,
    "threads": 1,
}


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two digits, which are pitches, by two speakers, who are loud or not; eight of each, of another length each."""
    monkeypatch.setattr(digits, "SETTINGS", TINY)
    for digit, speaker, number in ((d, s, n) for d in (0, 1) for s in ("ada", "bob") for n in range(8)):
        time = np.arange(700 + 10 * number)
        wave = (3000 if speaker == "ada" else 9000) * np.sin((0.2 + 0.3 * digit) * time)
        write_wav(tmp_path / "fsdd" / f"{digit}_{speaker}_{number}.wav", wave)
    return tmp_path / "fsdd"


def run(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    out, work = tmp_path / "digits.json", tmp_path / "work"
    given = ["digits", "--data", str(data), "--seeds", "1", "--out", str(out), "--work", str(work), *words]
    monkeypatch.setattr(sys, "argv", given)
    return digits.main()


def test_what_is_held_out_is_apart_and_keeps_its_labels(data: Path) -> None:
    train, held = digits.halves(str(data))
    assert (len(train), len(held)) == (12, 20)
    assert not set(train.names) & set(held.names)
    assert {name.split("_")[2] for name in held.names} == {f"{n}.wav" for n in range(5)}
    for part in (train, held):
        assert [int(name[0]) for name in part.names] == part.labels["digit"].tolist()
        assert ["ada" in name for name in part.names] == (part.labels["speaker"] == 0).tolist()
        assert all(len(part.read(i)) == part.lengths[i] for i in range(len(part)))


def test_features_are_of_whole_recordings(data: Path) -> None:
    class Length(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.tensor([[float(x.shape[1]), float(self.training)]])

    _, held = digits.halves(str(data))
    assert digits.features(Length(), held).tolist() == [[float(length), 0.0] for length in held.lengths]


def test_it_trains_probes_and_does_nothing_twice(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(data, tmp_path, monkeypatch) == 0
    report = json.loads((tmp_path / "digits.json").read_text())
    (row,) = report["rows"]
    assert row["recordings"] == {"train": 12, "held_out": 20}
    assert {kind for scores in row["scores"].values() for kind in scores} == {"digit", "speaker"}
    assert row["scores"].keys() == {TRAINED, RANDOM}
    assert str(tmp_path) not in json.dumps(report["settings"])
    page = "\n".join(digits.section(tmp_path / "digits.json"))
    assert "chance is 50 of the digit and 50 of the speaker" in page
    shown = (f"{100 * row['scores'][name][kind]:.1f}" for kind in ("digit", "speaker") for name in (TRAINED, RANDOM))
    assert f"| 0 | {' | '.join(shown)} |" in page
    assert digits.section(tmp_path / "none.json") == []
    before = (tmp_path / "digits.json").stat().st_mtime_ns
    capsys.readouterr()
    assert run(data, tmp_path, monkeypatch) == 0
    assert (tmp_path / "digits.json").stat().st_mtime_ns == before


def test_it_stops_when_its_minutes_are_over_and_goes_on(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(data, tmp_path, monkeypatch, "--minutes", "0") == 1
    assert not (tmp_path / "digits.json").exists()
    with monkeypatch.context() as over:
        over.setattr(digits.Clock, "over", property(lambda clock: True))
        with pytest.raises(KeyboardInterrupt, match="stopped after step 1 of"):
            digits.row_of(str(data), 0, tmp_path / "work", digits.Clock(1))
    assert run(data, tmp_path, monkeypatch) == 0
    lines = (tmp_path / "work/0/metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(1, 7))
