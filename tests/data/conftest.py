"""A cache that is told of, for whatever reads through it."""

from __future__ import annotations

from pathlib import Path

import pytest
from kept_helpers import Told

from fastssl.data.images import Cache


@pytest.fixture
def told() -> Told:
    return Told()


@pytest.fixture
def cache(tmp_path: Path, told: Told) -> Cache:
    return Cache(tmp_path / "cache", told.append)
