"""What the ops' Triton kernels are compiled from and to, for any GPU generation, on a machine without a GPU.

The ops run forward and backward on CPU tensors while their launches are noted in place of made: so kernels, types,
constants and options are those of the real launches.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend
from triton.runtime.jit import JITFunction, create_function_from_signature

from fastssl import ops
from fastssl.ops import _backend
from fastssl.ops.triton import _launch

ARCHITECTURES = (80, 90, 100)
TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


@dataclass(frozen=True)
class Launch:
    """One kernel as one call compiles it."""

    op: str
    kernel: Any
    signature: dict[str, str]
    constants: dict[tuple[int, ...], Any]
    attributes: dict[tuple[int, ...], Any]
    options: dict[str, Any]

    @property
    def name(self) -> str:
        """The kernel's name, with its op's where the kernel is the op's own."""
        return f"{self.kernel.__module__.rsplit('.', 1)[1]}.{self.kernel.__name__}"

    def same_code(self) -> str:
        """Equal for two launches that are compiled to the same code."""
        return repr((self.name, self.signature, self.constants, self.attributes, self.options))

    def compile(self, architecture: int) -> Any:
        """What Triton makes of it for compute capability ``architecture``, given as 90 for 9.0."""
        source = ASTSource(self.kernel, self.signature, self.constants, self.attributes)
        return triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=self.options)


@dataclass(frozen=True)
class Resources:
    """What a compiled kernel takes: registers and spilled bytes a thread, shared bytes a block."""

    registers: int
    stack: int
    local: int
    shared: int


def cuobjdump(what: str, binary: str | Path, *options: str) -> str:
    """What Triton's copy of CUDA's tool tells of compiled code."""
    return subprocess.check_output([TOOLS / "cuobjdump", f"--dump-{what}", *options, binary], text=True)


def dumped(what: str, compiled: Any) -> str:
    """The same of a kernel that Triton compiled."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as cubin:
        cubin.write(compiled.asm["cubin"])
        cubin.flush()
        return cuobjdump(what, cubin.name)


def resources(compiled: Any) -> Resources:
    """As cuobjdump reads them from the code; the shared memory is asked for at the launch."""
    told = dumped("resource-usage", compiled)
    registers, stack, local = (int(re.findall(rf"{word}:(\d+)", told)[-1]) for word in ("REG", "STACK", "LOCAL"))
    return Resources(registers, stack, local, compiled.metadata.shared)


@contextmanager
def recorded(op: str, architecture: int = ARCHITECTURES[0]) -> Iterator[list[Launch]]:
    """Inside, CPU tensors are served by the Triton backend, whose launches, as on a GPU of that compute capability, are
    noted and compute nothing."""
    found: list[Launch] = []
    placed, backend = _backend._placed, make_backend(GPUTarget("cuda", ARCHITECTURES[0], 32))

    def note(kernel: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        binder = create_function_from_signature(kernel.signature, kernel.params, backend)
        bound, specialization, options = binder(*args, **kwargs)
        _, signature, constants, attributes = kernel._pack_args(backend, kwargs, bound, specialization, options)
        found.append(Launch(op, kernel, signature, constants, attributes, options))

    with (
        mock.patch.object(JITFunction, "run", note),
        mock.patch.object(_launch, "gpu", return_value=_launch.Gpu(architecture // 10)),
        mock.patch.object(_backend, "_placed", lambda device, *tensors: placed("cpu", *tensors)),
        ops.backend("triton"),
    ):
        yield found


Rows = Callable[[int], Tensor]


def _info_nce(rows: Rows) -> Tensor:
    number = torch.arange(512)
    full = ops.info_nce(rows(512), rows(1024), number, exclude=number + 512, negatives=rows(4096), temperature=0.2)
    return full + ops.info_nce(rows(512), rows(512), temperature=0.2)


def _knn_classify(rows: Rows) -> Tensor:
    """With as many features as there are, and with an odd number of them."""
    for d in (None, -1):
        scores = ops.knn_classify(
            rows(256)[:, :d],
            rows(4096)[:, :d],
            torch.zeros(4096, dtype=torch.int64),
            k=20,
            temperature=0.07,
            num_classes=10,
        )
    return scores


def _propagate_labels(rows: Rows) -> Tensor:
    for d in (None, -1):
        target, context = (
            rows(1024)[:, :d].T.unflatten(1, (32, 32)),
            rows(4096)[:, :d].unflatten(0, (4, 32, 32)).movedim(3, 1),
        )
        labels = ops.propagate_labels(target, context, torch.zeros(4, 3, 32, 32), radius=12, k=5, temperature=0.1)
    return labels


# a training step, or the use, of each op that has Triton kernels, in all the ways that compile anew
STEPS: dict[str, Callable[[Rows], Tensor]] = {
    "clip_loss": lambda rows: ops.clip_loss(rows(512), rows(512), logit_scale=10.0),
    "info_nce": _info_nce,
    "knn_classify": _knn_classify,
    "nt_xent": lambda rows: ops.nt_xent(rows(512), rows(512), temperature=0.2),
    "propagate_labels": _propagate_labels,
    "queue_info_nce": lambda rows: ops.queue_info_nce(rows(256), rows(256), rows(4096), temperature=0.2),
    "siglip_loss": lambda rows: (
        ops.siglip_loss(rows(512), rows(512), logit_scale=10.0, logit_bias=-10.0)
        + ops.siglip_loss(
            rows(512).detach(), rows(512).detach(), logit_scale=10.0, logit_bias=torch.zeros((), requires_grad=True)
        )
    ),
}


def launches(op: str, dtype: torch.dtype, d: int, architecture: int) -> list[Launch]:
    """Every launch of a training step of ``op`` with rows of d features that is compiled to code of its own, as a GPU
    of compute capability ``architecture`` has it."""

    def rows(n: int) -> Tensor:
        return torch.zeros(n, d, dtype=dtype, requires_grad=True)

    with recorded(op, architecture) as found:
        result = STEPS[op](rows)
        if result.requires_grad:
            result.backward()
    return list({launch.same_code(): launch for launch in found}.values())
