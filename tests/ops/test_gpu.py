"""What every GPU kernel owes on a GPU: its stream, CUDA graphs, no waiting, the same bits, and the formula."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from fastssl.ops._backend import ops as registered

pytestmark = pytest.mark.gpu

OPS = registered()
KERNELS = [
    pytest.param(name, backend, id=f"{name}-{backend}")
    for name, op in OPS.items()
    for backend in op.implementations
    if backend in ("cuda", "triton")
]
PUBLIC = [param for param in KERNELS if not param.values[0].endswith("_backward")]
LONG = 20_000_000  # cycles: some ten milliseconds


def tensors_of(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    return [x for part in value for x in tensors_of(part)] if isinstance(value, (list, tuple)) else []


def example(name: str, gpu: torch.device, scale: float | None = None) -> tuple[Any, ...]:
    """The op's example, the same at each call; with ``scale`` its numbers times that, in another order."""
    torch.manual_seed(0)
    call = OPS[name].example(gpu)
    if scale is not None:
        for x in tensors_of(call):
            if x.is_floating_point():
                x.copy_(scale * (x.flip(-1) if x.dim() else x))
    return call


def served(name: str, call: tuple[Any, ...], backend: str) -> list[Tensor]:
    """What a call returned, and what it was given, for some ops write into that."""
    return tensors_of(OPS[name].call(*call, backend)) + tensors_of(call)


def assert_same(got: list[Tensor], want: list[Tensor]) -> None:
    assert len(got) == len(want)
    for x, y in zip(got, want, strict=True):
        torch.testing.assert_close(x, y, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize(("name", "backend"), KERNELS)
def test_runs_on_the_current_stream(name: str, backend: str, gpu: torch.device) -> None:
    """The inputs are NaN until the stream, which is kept busy, has written them: another one would read them before."""
    want = served(name, example(name, gpu), backend)
    call, right = example(name, gpu), example(name, gpu)
    for x in tensors_of(call):
        if x.is_floating_point():
            x.fill_(math.nan)
    served(name, example(name, gpu), backend)  # compiled and loaded
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(LONG)
        for x, y in zip(tensors_of(call), tensors_of(right), strict=True):
            x.copy_(y)
        got = served(name, call, backend)
    stream.synchronize()
    assert_same(got, want)


@pytest.mark.parametrize(("name", "backend"), KERNELS)
def test_a_graph_replays_with_other_inputs(name: str, backend: str, gpu: torch.device) -> None:
    call = example(name, gpu)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        served(name, call, backend)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = served(name, call, backend)
    for scale in (0.5, 0.25):
        for x, y in zip(tensors_of(call), tensors_of(example(name, gpu, scale)), strict=True):
            x.copy_(y)
        graph.replay()
        assert_same(got, served(name, example(name, gpu, scale), backend))


@pytest.mark.parametrize(("name", "backend"), KERNELS)
def test_never_waits_for_the_device(name: str, backend: str, gpu: torch.device) -> None:
    call = example(name, gpu)
    served(name, call, backend)  # what is uploaded once may be waited for
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        served(name, call, backend)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=lambda dtype: str(dtype)[6:])
@pytest.mark.parametrize(("name", "backend"), PUBLIC)
def test_agrees_with_the_formula_and_gives_the_same_bits_again(
    name: str, backend: str, dtype: torch.dtype, gpu: torch.device
) -> None:
    small_calls = pytest.importorskip("small_calls")  # it draws by hypothesis
    from fuzz_agree import assert_agree

    count = 0
    for arguments in small_calls.drawn(name, dtype, 12):
        got, again = (small_calls.served(name, arguments, backend, gpu) for _ in range(2))
        if got is None:
            continue
        count += 1
        assert_same(list(got.values()), list(again.values()))
        there = {key: x.cpu() for key, x in got.items()}
        assert_agree(name, arguments, small_calls.asking(name, arguments), {backend: there})
    if count == 0:
        pytest.skip(f"the {backend} kernel serves no {dtype} call")
