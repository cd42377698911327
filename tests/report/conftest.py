"""A run that looks trained without the time it takes."""

from __future__ import annotations

from pathlib import Path

import pytest
from report_helpers import images

from fastssl.data.images import Splits
from fastssl.train import config as configs
from fastssl.train.config import RunConfig
from fastssl.train.folder import RunFolder
from fastssl.train.loop import pretrain
from fastssl.train.trained import Trained, open_run


@pytest.fixture(scope="session")
def splits() -> Splits:
    return Splits(images(24, 0), images(12, 1))


@pytest.fixture(scope="session")
def config() -> RunConfig:
    return RunConfig(data="noise", image_size=16, width=8, epochs=2, batch_size=8, eval_every=1, threads=1)


@pytest.fixture(scope="session")
def trained(config: RunConfig, splits: Splits, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """Trained, not scored."""
    folder = RunFolder(tmp_path_factory.mktemp("run"))
    pretrain(config, splits, folder)
    assert configs.read(folder.config) == config
    return open_run(Path(folder.path))
