"""Recipes are runs: each is read as the command line reads it, and trains."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks import summary
from fastssl.data.images import ImageSet, Splits
from fastssl.train import config as configs
from fastssl.train import log
from fastssl.train.folder import RunFolder
from fastssl.train.loop import pretrain

RECIPES = sorted((Path(summary.__file__).parent / "recipes").glob("*.yaml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_trains_at_a_tiny_scale(path: Path, tmp_path: Path) -> None:
    config = configs.read(path)
    small = replace(config, width=4, batch_size=8, epochs=1, eval_every=0, threads=1, device="cpu")
    small = replace(small, compile=False)  # which would take a minute, and is tested in tests/train/test_compiled.py
    generator = torch.Generator().manual_seed(0)
    size = (16, 3, config.image_size, config.image_size)
    pixels = torch.randint(256, size, dtype=torch.uint8, generator=generator)
    names = tuple(map(str, range(len(pixels))))
    folder = RunFolder(tmp_path / "run")
    pretrain(small, Splits(ImageSet(pixels, None, (), names, "noise"), None), folder)
    losses = [row.loss for row in log.read(folder.metrics)]
    assert len(losses) == 2
    assert all(math.isfinite(loss) for loss in losses)


def test_the_fast_recipe_is_what_it_says() -> None:
    (path,) = (path for path in RECIPES if path.stem == "cifar10_fast")
    config = configs.read(path)
    assert (config.method, config.engine, config.precision) == ("simclr", "native", "bfloat16")
    assert config.channels_last
    assert config.compile
    assert config.encoder_options()["width"] == 64
    assert config.view_plan().blur == 0
