"""What every op owes, for all that are registered."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from fastssl import ops
from fastssl.ops import _native
from fastssl.ops._backend import ops as registered

OPS = registered()


@pytest.mark.one_isa
@pytest.mark.parametrize("name", OPS)
def test_passes_opcheck(name: str, engine) -> None:
    op = OPS[name]
    if engine.backend not in op.implementations:
        pytest.skip(f"the op has no {engine.backend} backend")
    torch.library.opcheck(getattr(torch.ops.fastssl, name).default, (*op.example(engine.device), None))


@pytest.mark.parametrize("name", OPS)
def test_every_op_has_the_reference_and_a_kernel_for_the_cpu(name: str) -> None:
    assert {"reference", "cpu"} <= set(OPS[name].implementations)


@pytest.mark.parametrize("name", OPS)
def test_the_native_kernel_is_what_runs_by_default(name: str) -> None:
    op = OPS[name]
    assert op.choose(op.example(torch.device("cpu"))) == "cpu"


@pytest.mark.gpu
@pytest.mark.parametrize("name", OPS)
def test_the_gpu_kernel_is_what_runs_by_default(name: str) -> None:
    op = OPS[name]
    kernels = {"cuda", "triton"} & set(op.implementations)
    if not kernels:
        pytest.skip("the op has no GPU kernel yet")
    assert op.choose(op.example(torch.device("cuda"))) in kernels


@pytest.mark.parametrize("name", OPS)
def test_without_native_modules_the_reference_serves(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_native, "cpu", None)
    monkeypatch.setattr(_native, "CPU_MISSING", "it was not built")
    op = OPS[name]
    assert op.choose(op.example(torch.device("cpu"))) == "reference"
    with (
        ops.backend("cpu"),
        pytest.raises(RuntimeError, match="'cpu' was asked for and cannot serve this call: it was not"),
    ):
        op.choose(op.example(torch.device("cpu")))


def test_a_forced_backend_ends_with_its_context() -> None:
    z = torch.eye(4)
    assert ops.explain(ops.nt_xent, z, z, temperature=1.0).startswith("nt_xent: cpu")
    with ops.backend("reference"):
        told = ops.explain(ops.nt_xent, z, z, temperature=1.0)
        assert told.startswith("nt_xent: reference")
        assert "not cpu: reference was asked for" in told
    assert ops.explain(ops.nt_xent, z, z, temperature=1.0).startswith("nt_xent: cpu")


def test_explain_changes_nothing() -> None:
    target = torch.zeros(3)
    assert ops.explain(ops.ema_update_, [target], [torch.ones(3)], 0.5).startswith("ema_update_: cpu")
    assert target.eq(0).all()
    with pytest.raises(TypeError, match="called no op"):
        ops.explain(torch.zeros, 3)
    with pytest.raises(ValueError, match="temperature"):
        ops.explain(ops.nt_xent, torch.eye(3), torch.eye(3), temperature=0.0)


@pytest.mark.parametrize("compiler", [None, "aot_eager", "inductor"])
@pytest.mark.parametrize("name", [name for name, op in OPS.items() if op.writes])
def test_a_backward_that_saved_what_is_written_refuses(name: str, compiler: str | None) -> None:
    op = OPS[name]

    def step(factor: Tensor, *call: Any) -> Tensor:
        written = [x for i in op.writes for x in ([call[i]] if isinstance(call[i], Tensor) else call[i])]
        loss = torch.stack([(x * factor).sum() for x in written]).sum()
        with torch.no_grad():
            op.call(*call, None)
        return loss

    compiled = step if compiler is None else torch.compile(step, fullgraph=True, backend=compiler)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        compiled(torch.ones((), requires_grad=True), *op.example(torch.device("cpu"))).backward()


def test_an_unknown_backend_is_refused() -> None:
    with (
        pytest.raises(ValueError, match="unknown backend 'gpu': choose one of cpu, cuda, reference, triton"),
        ops.backend("gpu"),
    ):
        pass
