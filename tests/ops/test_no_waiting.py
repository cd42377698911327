"""Without a GPU: the Python around its kernels never asks what a tensor holds, which would wait for the device.

What `test_gpu.py` asks of a GPU, and what a CUDA graph needs, is seen here in the calls of torch that an op makes: none
may have a result on the host, or of a size, that depends on values.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import pytest
import small_calls
import torch
from emulated import INTERPRETING, cuda_on_cpu
from fuzz_calls import CALLS
from torch.utils._python_dispatch import TorchDispatchMode

from fastssl.ops import ema_update_
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


@pytest.mark.parametrize(("name", "backend"), KERNELS)
def test_a_kernels_call_reads_no_value(name: str, backend: str) -> None:
    served = 0
    on_cpu: AbstractContextManager[None] = ON_CPU[backend]()
    with on_cpu:
        for dtype in small_calls.DTYPES:
            for arguments in small_calls.drawn(name, dtype, 4):
                with Unread():
                    served += small_calls.served(name, arguments, backend, torch.device("cpu")) is not None
    assert served


def test_a_read_would_be_seen() -> None:
    x = torch.tensor([1.0, 0.0])
    for read in (lambda: x[0].item(), lambda: bool(x.any()), x.nonzero, lambda: x[x > 0], x.unique):
        with Unread(), pytest.raises(AssertionError, match="waits for the device"):
            read()
    with Unread(), pytest.raises(AssertionError, match="waits for the device"):
        small_calls.served("knn_classify", small_calls.drawn("knn_classify", torch.float32, 1)[0], "cpu", x.device)
    with Unread():
        ema_update_([x], [x.clone()], 0.5, backend="reference")
