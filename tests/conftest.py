"""What all tests share: which tests need a GPU, and that they are skipped, saying so, where there is none."""

from __future__ import annotations

import os
import tempfile

import pytest
import torch

# compiled graphs of an earlier version of an op must not be found
_compiled = tempfile.TemporaryDirectory(prefix="fastssl-inductor-")
os.environ["TORCHINDUCTOR_CACHE_DIR"] = _compiled.name


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="no GPU here"))
