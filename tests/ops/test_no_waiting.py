"""Without a GPU: the Python around its kernels never asks what a tensor holds, which would wait for the device.

What `test_gpu.py` asks of a GPU, and what a CUDA graph needs, is seen here in the calls of torch that an op makes: none
may have a result on the host, or of a size, that depends on values.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import pytest
import torch

pytest.importorskip("hypothesis", reason="draws the calls")

import small_calls
from emulated import INTERPRETING, cuda_on_cpu
from fuzz_calls import CALLS, Arguments
from fuzz_helpers import copied, mapped, tensors_of
from torch.utils._python_dispatch import TorchDispatchMode

from fastssl import ops
from fastssl.ops._backend import ops as registered

pytestmark = pytest.mark.skipif(INTERPRETING, reason="launches are noted and not made")
KERNELS = [(name, backend) for name in sorted(CALLS) for backend in small_calls.gpu_backends(name)]


class Unread(TorchDispatchMode):
    """Raises at a call of torch that waits for what a tensor on a GPU holds; looks into our ops as well."""

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if function.namespace == "fastssl":
            op = registered()[function._schema.name.partition("::")[2]]
            *call, backend = args
            with self:
                return op.implementations[op.choose(call, backend)].run(*call)
        if {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape} & {*function.tags}:
            raise AssertionError(f"{function} waits for the device")
        return function(*args, **(kwargs or {}))


@contextmanager
def triton_unlaunched() -> Iterator[None]:
    launches = pytest.importorskip("benchmarks.launches", reason="needs Triton")
    with launches.recorded("any"):
        yield


ON_CPU: dict[str, Any] = {"cuda": cuda_on_cpu, "triton": triton_unlaunched}


def step(name: str, arguments: Arguments, backend: str) -> bool:
    """Calls an op and its backward where it has one; whether the backend could serve it."""
    given = {key: mapped(value, copied) for key, value in arguments.items()}
    leaves = [given[key].requires_grad_() for key in small_calls.asking(name, arguments)]
    upstream = torch.ones(())
    try:
        with Unread():
            results = list(tensors_of(getattr(ops, name)(**given, backend=backend)))
            if leaves:
                torch.autograd.grad(results, leaves, [upstream.expand_as(x).to(x.dtype) for x in results])
    except RuntimeError as error:
        if "cannot serve this call" not in str(error):
            raise
        return False
    return True


@pytest.mark.parametrize(("name", "backend"), KERNELS)
def test_a_kernels_call_reads_no_value(name: str, backend: str) -> None:
    on_cpu: AbstractContextManager[None] = ON_CPU[backend]()
    with on_cpu:
        calls = [call for dtype in small_calls.DTYPES for call in small_calls.drawn(name, dtype, 4)]
        assert any([step(name, arguments, backend) for arguments in calls])  # noqa: C419


def test_a_read_would_be_seen() -> None:
    x = torch.tensor([1.0, 0.0])
    for read in (lambda: x[0].item(), lambda: bool(x.any()), x.nonzero, lambda: x[x > 0], x.unique):
        with Unread(), pytest.raises(AssertionError, match="waits for the device"):
            read()
    with pytest.raises(AssertionError, match="waits for the device"):
        step("knn_classify", small_calls.drawn("knn_classify", torch.float32, 1)[0], "cpu")
