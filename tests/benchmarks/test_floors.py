"""The floors' native half: that it compiles and counts, and what is said where there is no compiler."""

from __future__ import annotations

import shutil

import pytest

from benchmarks import floors


def test_without_a_compiler_there_is_a_message(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(floors.NoFloorsError, match=r"no C\+\+ compiler: put one of c\+\+, g\+\+, clang\+\+ on PATH"):
        floors.library(tmp_path)


def test_a_compiler_that_fails_is_quoted(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    (tmp_path / "broken").write_text("#!/bin/sh\necho it is broken >&2; exit 1\n")
    (tmp_path / "broken").chmod(0o755)
    monkeypatch.setenv("CXX", str(tmp_path / "broken"))
    with pytest.raises(floors.NoFloorsError, match="broken failed: it is broken"):
        floors.library(tmp_path)


@pytest.mark.skipif(not any(map(shutil.which, floors.COMPILERS)), reason="needs a C++ compiler")
def test_every_rate_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(floors, "SECONDS", 0.05)  # many calls: one may be interrupted for long
    monkeypatch.setattr(floors, "MEGABYTES", (0.25, 1))
    found = floors.measured(threads=1)
    products = [found.fma_gflops, found.bfloat16_gflops, found.gemm_gflops]
    rates = [*products, found.exp_billions_per_second, found.torch_exp_billions_per_second]
    assert all(0 < rate < 1e5 for rate in rates), found
    assert found.bandwidths.keys() == {0.25, 1}
    assert all(0 < rate < 1e5 for way in found.bandwidths.values() for rate in way.values()), found
