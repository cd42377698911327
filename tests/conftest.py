"""What all tests share: which tests need a GPU, and that they are skipped, saying so, where there is none."""

from __future__ import annotations

import os
import tempfile
from contextlib import suppress

import pytest
import torch

# Compiled graphs of an earlier version of an op must not be found; those of this run serve all of pytest-xdist's
# workers, which inherit the folder.
if "PYTEST_XDIST_WORKER" not in os.environ:
    _compiled = tempfile.TemporaryDirectory(prefix="fastssl-inductor-")
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = _compiled.name

# Nor are images kept where those who run the tests keep theirs.
_cached = tempfile.TemporaryDirectory(prefix="fastssl-cache-")
os.environ["FASTSSL_CACHE"] = _cached.name

with suppress(ModuleNotFoundError):  # only the fuzz needs it
    from hypothesis import HealthCheck, settings

    # The same examples at each run, few enough for every change; `--hypothesis-profile thorough` looks further, anew
    # each time.
    _any_speed = dict(deadline=None, suppress_health_check=list(HealthCheck))
    settings.register_profile("brief", max_examples=60, derandomize=True, database=None, **_any_speed)
    # where a call takes seconds: interpreted kernels, and those that check every address
    settings.register_profile("few", max_examples=8, derandomize=True, database=None, **_any_speed)
    settings.register_profile("thorough", max_examples=1000, print_blob=True, **_any_speed)
    settings.load_profile("brief")


def pytest_addoption(parser: pytest.Parser) -> None:
    told = "instruction sets of the C++ kernels: AVX2 and this processor's best, the plainest and the best, or all; "
    told += "beside a matrix unit, of products of bfloat16 that without it, too"
    parser.addoption("--isas", choices=("usual", "ends", "all"), default="usual", help=told)
    told = "run the GPU's tests of the ops on the CPU, with formulas in place of kernels: tests/ops/pretended.py"
    parser.addoption("--pretend-gpu", action="store_true", help=told)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if torch.cuda.is_available() or config.getoption("pretend_gpu"):
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="no GPU here"))
