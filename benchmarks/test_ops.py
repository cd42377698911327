"""The same cases under pytest-benchmark: ``pytest benchmarks --benchmark-only``."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from benchmarks.floors import Floors, NoFloorsError, measured
from benchmarks.harness import BUDGET, FEWEST, SAMPLES, Case, Work, cases, made, row, timed


@pytest.fixture(scope="session")
def floors() -> Floors | None:
    try:
        return measured(torch.get_num_threads())
    except NoFloorsError:
        return None


@pytest.mark.parametrize(
    ("case", "provider"),
    [pytest.param(case, provider, id=f"{case.name}-{provider}") for case in cases() for provider in case.providers],
)
def test_op(benchmark: Any, floors: Floors | None, case: Case, provider: str) -> None:
    """``timed`` synchronises; ``extra_info`` has what ``python -m benchmarks`` writes of a provider by itself."""
    works, failed = made(case, [provider])
    if failed:
        pytest.skip(failed[provider])
    work: Work = works[provider]
    rounds = max(FEWEST, min(SAMPLES, int(BUDGET / timed(work))))
    benchmark.group = case.name
    benchmark.pedantic(timed, args=(work,), rounds=rounds, iterations=1)
    if benchmark.stats is not None:
        benchmark.extra_info.update(row(case, provider, work, list(benchmark.stats.stats.data), floors))
