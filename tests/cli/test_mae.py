"""A masked autoencoder from the command line to its report."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from cli_helpers import QUICK, Run
from safetensors.torch import load_file

from fastssl import models
from fastssl.cli.pretrain import _arguments
from fastssl.train import config as configs
from fastssl.train.trained import open_run

VIT = [*QUICK, "--patch_size", "4", "--depth", "2"]


@pytest.fixture(scope="module")
def trained(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from fastssl.cli import main

    folder = tmp_path_factory.mktemp("runs") / "mae"
    assert main(["pretrain", "mae", "--data", str(photos), "--out", str(folder), *VIT]) == 0
    return folder


def test_the_recipe_is_the_methods_own(trained: Path) -> None:
    config = configs.read(trained / "config.yaml")
    assert (config.encoder, config.stem, config.patch_size, config.width) == ("vit_micro", None, 4, 8)
    assert (config.optim.name, config.optim.beta2) == ("adamw", 0.95)
    assert "--optim" not in configs.command(config)
    assert _arguments(configs.command(config).split()[2:])[0] == config


def test_a_file_of_another_method_keeps_what_was_set_in_it(trained: Path, done: Path) -> None:
    words = ["mae", "--config", str(done / "config.yaml"), "--patch_size", "4"]
    config = _arguments(words)[0]
    assert (config.encoder, config.epochs, config.width, config.optim.name) == ("vit_micro", 2, 8, "adamw")


def test_views_that_patches_do_not_fill_are_one_line_and_write_nothing(photos: Path, run: Run) -> None:
    outcome = run("pretrain", "mae", "--data", photos, "--out", "out", "--image_size", "32", "--plan.size", "30")
    assert "the views do not suit the method: vit: patches of 8 pixels do not fill images of 30 x 30" in outcome.error()
    assert not Path("out").exists()


def test_it_is_scored_embedded_and_exported(trained: Path, photos: Path, run: Run) -> None:
    rows = json.loads((trained / "scores.json").read_text())["rows"]
    assert [row["features"] for row in rows] == ["trained", "random initialisation", "raw pixels"]
    assert run("embed", trained, photos, "--out", "features.npz").code == 0
    with np.load("features.npz") as table:
        assert table["features"].shape == (30, 8)
    assert run("export", trained, "--out", "encoder.safetensors").code == 0
    options = open_run(trained).config.encoder_options()
    encoder = models.get("vit_micro")(**options).eval()
    encoder.load_state_dict(load_file("encoder.safetensors"), strict=True)
    x = torch.rand(2, 3, 16, 16)
    assert torch.equal(encoder(x), open_run(trained).encoder(x))


def test_the_report_shows_what_it_rebuilds(trained: Path) -> None:
    html = (trained / "report.html").read_text()
    assert "vit_micro (patch size 4, width 8, depth 2, pool mean; " in html.replace("\n", " ")
    assert "What the method makes of images" in html
    assert "MAE: rebuild the pixels of most patches from the few that are left" in html
    captions = [html.count(f"<figcaption>{name}</figcaption>") for name in ("masked", "reconstructed", "original")]
    assert captions == [6, 6, 6]


def test_a_method_without_pictures_has_no_such_part(done: Path) -> None:
    assert "What the method makes of images" not in (done / "report.html").read_text()
