"""A split-brain autoencoder from the command line to its report and its file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from cli_helpers import QUICK, Run
from safetensors import safe_open

from fastssl import models
from fastssl.train.trained import open_run


@pytest.mark.parametrize("loss", ["classification", "regression"])
def test_it_is_trained_scored_shown_and_exported(loss: str, photos: Path, run: Run) -> None:
    words = ("--stem", "cifar", "--split_brain.loss", loss)
    done = run("pretrain", "split_brain", "--data", photos, "--out", "out", *QUICK, *words)
    assert done.code == 0
    assert ("(chance " if loss == "classification" else "(always the mean ") in done.err
    html = Path("out/report.html").read_text(encoding="utf-8")
    assert html.count("<figcaption>both guesses</figcaption>") == 6
    rows = json.loads(Path("out/scores.json").read_text())["rows"]
    assert [row["dim"] for row in rows[:2]] == [32, 32]  # both halves
    assert run("export", "out", "--out", "encoder.safetensors").code == 0
    with safe_open("encoder.safetensors", "pt") as file:
        told = file.metadata()
        weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    encoder = models.get(told["architecture"])(**json.loads(told["options"])).eval()
    encoder.load_state_dict(weights, strict=True)
    x = torch.randn(2, 3, 16, 16)
    assert torch.equal(encoder(x), open_run(Path("out")).encoder(x))
    assert told["input"] == "rgb"
