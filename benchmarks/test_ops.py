"""The same cases under pytest-benchmark: ``pytest benchmarks --benchmark-only``."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.harness import SAMPLES, WARM_UP, Case, cases
from benchmarks.rivals import NotInstalledError


@pytest.mark.parametrize(
    ("case", "provider"),
    [pytest.param(case, provider, id=f"{case.name}-{provider}") for case in cases() for provider in case.providers],
)
def test_op(benchmark: Any, case: Case, provider: str) -> None:
    benchmark.group = case.name
    try:
        work = case.providers[provider]()
    except NotInstalledError as missing:
        pytest.skip(str(missing))
    benchmark.pedantic(work, rounds=SAMPLES, warmup_rounds=WARM_UP, iterations=1)
