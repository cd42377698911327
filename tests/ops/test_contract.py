"""What every op owes, for all that are registered."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from emulated import cuda_on_cpu
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

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


@pytest.mark.one_isa
@pytest.mark.parametrize("name", [name for name in OPS if f"{name}_backward" in OPS])
def test_passes_opcheck_with_gradients(name: str, engine) -> None:
    op = OPS[name]
    if engine.backend not in op.implementations:
        pytest.skip(f"the op has no {engine.backend} backend")
    asking = lambda x: x.clone().requires_grad_() if isinstance(x, Tensor) and x.is_floating_point() else x  # noqa: E731
    example = tree_map(asking, op.example(engine.device))
    torch.library.opcheck(getattr(torch.ops.fastssl, name).default, (*example, None))


@pytest.mark.parametrize("name", OPS)
def test_examples_can_be_written_to(name: str) -> None:
    """As the GPU's check does, whose captured graphs read new numbers from the same memory."""
    for x in tree_leaves(OPS[name].example(torch.device("cpu"))):
        if isinstance(x, Tensor):
            x.copy_(x.clone())


def test_tests_of_kernels_are_given_the_engines_device() -> None:
    """On a GPU, a kernel that is forced refuses what was made on the CPU."""
    for file in sorted(Path(__file__).parent.glob("test_*.py")):
        source = file.read_text(encoding="utf-8")
        if re.search(r"def test_\w+\(\s*engine\b", source):
            assert re.search(r"made_on_the_engine|engine\.device", source), file.name


@pytest.mark.parametrize("name", OPS)
def test_every_op_has_the_reference_and_a_kernel_for_the_cpu(name: str) -> None:
    assert {"reference", "cpu"} <= set(OPS[name].implementations)


@pytest.mark.parametrize("name", OPS)
def test_the_native_kernel_is_what_runs_by_default(name: str) -> None:
    op = OPS[name]
    assert op.choose(op.example(torch.device("cpu"))) == "cpu"


@pytest.mark.gpu
@pytest.mark.parametrize("name", OPS)
def test_the_gpu_kernel_is_what_runs_by_default(name: str, gpu: torch.device) -> None:
    op = OPS[name]
    kernels = {"cuda", "triton"} & set(op.implementations)
    if not kernels:
        pytest.skip("the op has no GPU kernel yet")
    assert op.choose(op.example(gpu)) in kernels


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


def _large(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.zeros(1, dtype=dtype).expand(shape)


def _views(count: int, width: int, size: int) -> tuple[Any, ...]:
    """The arguments of one view of ``count`` images of one row."""
    of_each = [((4,), torch.int64), ((), torch.bool), ((), torch.int64), ((4,), torch.int64), ((4,), torch.float32)]
    of_each += [((), torch.bool), ((), torch.float32), ((), torch.bool)]
    params = [_large(1, count, *shape, dtype=dtype) for shape, dtype in of_each]
    images = _large(count, 3, 1, width, dtype=torch.uint8)
    return images, None, *params, [size], [0.0] * 3, [1.0] * 3, False, torch.float32, False


IDS = _large(2**31, 2, dtype=torch.int64)
CALLS_TOO_LARGE: dict[str, tuple[tuple[Any, ...], str]] = {
    "augment": (_views(2**31, 1, 8), "2^31 - 1 blocks at once, and this call needs 2147483648"),
    "augment's views": (_views(1, 1, 1681), "views of at most 1680 pixels a side, got 1681"),
    "augment's images": (_views(1, 2**31, 8), "images of less than 2^31 pixels a side, got 2147483648"),
    "random_masking": ((_large(2**31, 1), 1), "2^31 - 1 blocks at once, and this call needs 2147483648"),
    "random_masking's patches": ((_large(1, 2**30 + 1), 1), "sorts at most 2^30 patches a sample, got 1073741825"),
    "block_masking": ((_large(2**31, 132), _large(2**31), 2, 2, 1, 1, [1.0]), "2^31 - 1 blocks"),
    "tiles": (
        (_large(2**28, 8, 2, 2), _large(2**28, 1, dtype=torch.int64), None, 1, 1, 2, 2, False),
        "2^31 - 1 blocks",
    ),
    "sinkhorn_knopp": ((_large(2**31, 2), 0.1, 3), "2^31 - 1 blocks"),
    "distillation_loss": ((_large(2, 2**31, 2), _large(2, 2**31, 2), None, 0.1, 0.1), "2^31 - 1 blocks"),
    "take_patches": ((_large(2**31, 4, 2), IDS, None), "2^31 - 1 blocks"),
    "take_patches' indices": ((_large(1, 4, 2), IDS.T[:1], None), "2^31 - 1 indices a sample, got 2147483648"),
    "restore_patches": ((_large(2**31, 1, 2), IDS, _large(2), None), "2^31 - 1 blocks"),
}


@pytest.mark.parametrize("name", CALLS_TOO_LARGE)
def test_more_than_a_launch_holds_is_refused_in_words(name: str) -> None:
    call, words = CALLS_TOO_LARGE[name]
    with cuda_on_cpu():
        told = OPS[name.partition("'")[0]].implementations["cuda"].unsupported(*call)
    assert told is not None
    assert words in told


def test_an_unknown_backend_is_refused() -> None:
    with (
        pytest.raises(ValueError, match="unknown backend 'gpu': choose one of cpu, cuda, reference, triton"),
        ops.backend("gpu"),
    ):
        pass
