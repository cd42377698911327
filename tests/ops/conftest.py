"""Engines: every way an op can be served, each on its own device; and memory that starts as NaN."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch

from fastssl import ops
from fastssl.ops import _native

ISAS = ("baseline", "avx2", "avx512", "avx512bf16")


@dataclass(frozen=True)
class Engine:
    """A backend, forced for the duration of a test; a call that it cannot serve raises."""

    backend: str
    device: torch.device

    def __str__(self) -> str:
        return self.backend


def _engines() -> list[object]:
    cpu = [pytest.param(("cpu", isa), id=f"cpu-{isa}") for isa in ISAS]
    gpu = [pytest.param((name, ""), id=name, marks=pytest.mark.gpu) for name in ("triton", "cuda")]
    return [pytest.param(("reference", ""), id="reference"), *cpu, *gpu]


@pytest.fixture(params=_engines())
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    backend, isa = request.param
    needed = getattr(request.module, "BACKENDS", None)
    if needed is not None and backend not in needed:
        pytest.skip(f"the op has no {backend} backend")
    if backend == "cpu":
        assert _native.cpu is not None, _native.CPU_MISSING
        if ISAS.index(isa) > ISAS.index(_native.cpu.supported_isa()):
            pytest.skip(f"this processor cannot run {isa}")
        _native.cpu.set_isa(isa)
    with ops.backend(backend):
        yield Engine(backend, torch.device("cuda" if backend in ("triton", "cuda") else "cpu"))
    if backend == "cpu":
        _native.cpu.set_isa(_native.cpu.supported_isa())


@pytest.fixture(autouse=True)
def _empty_memory_is_nan() -> Iterator[None]:
    """Under deterministic algorithms torch fills new memory with NaN, so an element that no kernel wrote shows."""
    assert torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)
