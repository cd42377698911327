"""Engines: every way an op can be served, each on its own device; and memory that starts as NaN.

Without a GPU the CUDA kernels run in an emulator (``emulated.py``), and the Triton kernels in Triton's interpreter, for
which Triton must be imported under ``TRITON_INTERPRET=1``: then that is the only engine.
"""

from __future__ import annotations

import ctypes
import itertools
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import pytest
import torch
from emulated import EMULATED, INTERPRETED, INTERPRETING, cuda_on_cpu, triton_on_cpu
from isas import BY_PAIRS, ISAS
from pretended import gpu_on_cpu

from fastssl import _build, ops
from fastssl.ops import _native

M_PERTURB = -6  # of mallopt: what is allocated is filled with a byte


@dataclass(frozen=True)
class Engine:
    """A backend, forced for the duration of a test; a call that it cannot serve raises."""

    backend: str
    device: torch.device
    slow: bool = False  # a GPU's kernel on the CPU: large sizes may be left out

    def __str__(self) -> str:
        return self.backend


def _engines(isas: tuple[str, ...]) -> list[object]:
    if INTERPRETING:
        return [pytest.param(("triton", INTERPRETED), id="triton-interpreted")]
    cpu = [pytest.param(("cpu", isa), id=f"cpu-{isa}") for isa in isas]
    gpu = [pytest.param((name, ""), id=name, marks=pytest.mark.gpu) for name in ("triton", "cuda")]
    return [
        pytest.param(("reference", ""), id="reference"),
        *cpu,
        pytest.param(("cuda", EMULATED), id="cuda-emulated"),
        *gpu,
    ]


ON_CPU = {EMULATED: cuda_on_cpu, INTERPRETED: triton_on_cpu}


def _multiplies_pairs(metafunc: pytest.Metafunc) -> bool:
    """Whether there are cases of several types of an op that multiplies pairs, which a matrix unit does otherwise."""
    return "dtype" in metafunc.fixturenames and metafunc.module.__name__.rpartition("test_")[2] in BY_PAIRS


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "engine" in metafunc.fixturenames:
        isas: tuple[str, ...] = ISAS
        if _native.cpu is not None:
            best = _native.cpu.supported_isa()
            if metafunc.definition.get_closest_marker("one_isa"):
                isas = (best,)
            elif (chosen := metafunc.config.getoption("isas")) != "all":
                narrow = "baseline" if chosen == "ends" or best == "baseline" else "avx2"
                pairs = ["avx512bf16"] if best == "amx" and _multiplies_pairs(metafunc) else []
                isas = tuple(dict.fromkeys((narrow, *pairs, best)))
        metafunc.parametrize("engine", _engines(isas), indirect=True)


@pytest.fixture
def gpu(request: pytest.FixtureRequest) -> Iterator[torch.device]:
    """The GPU's device; under ``--pretend-gpu`` the CPU's, with all that the tests ask of torch.cuda."""
    pretending = request.config.getoption("pretend_gpu")
    assert pretending or not _build.stale(), _build.stale()
    on_cpu: AbstractContextManager[None] = gpu_on_cpu() if pretending else nullcontext()
    with on_cpu:
        yield torch.device("cpu" if pretending else "cuda")


@pytest.fixture
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    backend, how = request.param
    needed = getattr(request.module, "BACKENDS", None)
    if needed is not None and backend not in needed:
        pytest.skip(f"the op has no {backend} backend")
    if backend == "cpu":
        assert _native.cpu is not None, _native.CPU_MISSING
        if ISAS.index(how) > ISAS.index(_native.cpu.supported_isa()):
            pytest.skip(f"this processor cannot run {how}")
        best = _native.cpu.supported_isa()
        beside_best = how == "avx512bf16" != best and request.config.getoption("isas") != "all"
        if beside_best and request.node.callspec.params["dtype"] == torch.float64:
            pytest.skip("a matrix unit has no part in float64")
        _native.cpu.set_isa(how)
    on_gpu = backend in ("triton", "cuda") and how not in ON_CPU
    device = request.getfixturevalue("gpu") if on_gpu else torch.device("cpu")
    with ON_CPU.get(how, nullcontext)(), ops.backend(backend):
        yield Engine(backend, device, slow=how in ON_CPU)
    if backend == "cpu":
        _native.cpu.set_isa(_native.cpu.supported_isa())


@pytest.fixture
def other_working_memory(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Each call of a C++ kernel finds its working memory filled with something else: no result may hang on it.

    Kept memory would hold what the call before left there.
    """
    fill = getattr(ctypes.CDLL(None), "mallopt", lambda option, byte: 0)  # glibc's
    threads, calls = _native.threads, itertools.count()

    def threads_of_a_call() -> int:
        if _native.cpu is not None:
            _native.cpu.release_kept()
        fill(M_PERTURB, 1 + next(calls) % 255)
        return threads()

    monkeypatch.setattr(_native, "threads", threads_of_a_call)
    yield
    fill(M_PERTURB, 0)


@pytest.fixture
def made_on_the_engine(request: pytest.FixtureRequest) -> Iterator[None]:
    """What the test's own calls of torch make, if they name no device, is on the engine's."""
    device = request.getfixturevalue("engine").device if "engine" in request.fixturenames else torch.device("cpu")
    with nullcontext() if device.type == "cpu" else device:
        yield


@pytest.fixture(autouse=True)
def _empty_memory_is_nan() -> Iterator[None]:
    """Under deterministic algorithms torch fills new memory with NaN, so an element that no kernel wrote shows."""
    assert torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)
