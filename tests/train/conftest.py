"""Images and settings small enough to train on in a second."""

from __future__ import annotations

import resource
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
import torch

from fastssl.data.images import ImageSet, Splits
from fastssl.optim import OptimConfig
from fastssl.train.config import RunConfig
from fastssl.train.folder import RunFolder


def images(count: int, seed: int, *, labelled: bool = True) -> ImageSet:
    """Noise around two colours, one a class."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 2
    colours = torch.tensor([[200, 60, 60], [60, 60, 200]])[labels].view(count, 3, 1, 1)
    noise = torch.randint(-50, 50, (count, 3, 16, 16), generator=generator)
    return ImageSet(
        images=(colours + noise).to(torch.uint8),
        labels=labels if labelled else None,
        classes=("red", "blue") if labelled else (),
        names=tuple(f"{seed}-{i}.png" for i in range(count)),
        source="noise",
    )


@pytest.fixture
def splits() -> Splits:
    return Splits(images(25, 0), images(8, 1))


@pytest.fixture
def unlabelled() -> Splits:
    return Splits(images(25, 0, labelled=False), None)


@pytest.fixture
def config() -> RunConfig:
    """Three steps an epoch, three epochs."""
    return RunConfig(
        data="noise",
        image_size=16,
        width=8,
        epochs=3,
        batch_size=8,
        eval_every=2,
        threads=1,
        optim=OptimConfig(lr=0.05, warmup_epochs=1),
    )


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path / "run")


@pytest.fixture
def limit_files() -> Callable[[int], AbstractContextManager[None]]:
    """Makes writes beyond so many bytes of a file fail, as they do on a full disk."""

    @contextmanager
    def limited(size: int) -> Iterator[None]:
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    return limited
