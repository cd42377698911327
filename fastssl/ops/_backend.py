"""Which of an op's implementations serves a call.

``reference`` is plain torch on any device and defines what is right; ``cpu`` is C++; ``triton`` and ``cuda`` are GPUs'.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from fastssl.ops import _inplace, _native

BACKENDS = ("cuda", "triton", "cpu", "reference")  # in the order of preference

_library: Any = torch.library.Library("fastssl", "DEF")  # type: ignore[no-untyped-call]
_forced: str | None = None


@dataclass(frozen=True)
class Implementation:
    """One backend of an op.

    ``unsupported(*args)`` says why this backend cannot serve a call with these arguments, or None if it can;
    ``slower(*args)`` why it is passed over although it can, unless it is asked for (``fastssl.ops._crossover``).
    """

    run: Callable[..., Any]
    unsupported: Callable[..., str | None]
    slower: Callable[..., str | None] = lambda *_: None

    def passed_over(self, call: Sequence[Any]) -> str | None:
        """Why another backend is to serve these arguments, if it may be any."""
        return self.unsupported(*call) or self.slower(*call)


class Op:
    """An op of ``torch.ops.fastssl``: its schema, its backends, and the choice between them at each call.

    The schema's last argument is ``str? backend``: the name of a backend that must serve the call, or None.
    ``fake`` gives empty results for the same arguments; ``example(device)`` gives the arguments of a small call.
    """

    def __init__(
        self,
        schema: str,
        implementations: dict[str, Implementation],
        fake: Callable[..., Any],
        example: Callable[[torch.device], tuple[Any, ...]],
    ) -> None:
        self.name = schema[: schema.index("(")]
        self.example = example
        self.implementations = {name: implementations[name] for name in BACKENDS if name in implementations}
        _library.define(schema)
        # one kernel for every device: the choice below looks at the tensors, and says what it cannot serve
        _library.impl(self.name, self._run, "CompositeExplicitAutograd")
        torch.library.register_fake(f"fastssl::{self.name}", fake, lib=_library)
        self.call = getattr(torch.ops.fastssl, self.name).default
        arguments = self.call._schema.arguments
        self.writes = [i for i, x in enumerate(arguments) if x.alias_info is not None and x.alias_info.is_write]
        if self.writes:
            _library.impl(self.name, self._run_in_place, "ADInplaceOrView", with_keyset=True)
        _ops[self.name] = self

    def _run(self, *args: Any) -> Any:
        *call, backend = args
        if getattr(_state, "explaining", False):
            raise _Explained(self.explain(call, backend))
        return self.implementations[self.choose(call, backend)].run(*call)

    def _run_in_place(self, keys: Any, *args: Any) -> None:
        """Computes, then tells autograd what was written: here, where a compiler that traces the op passes as well."""
        with torch._C._AutoDispatchBelowADInplaceOrView():
            self.call.redispatch(keys & torch._C._after_ADInplaceOrView_keyset, *args)
        for i in self.writes:
            _inplace.changed(*([args[i]] if isinstance(args[i], Tensor) else args[i]))

    def choose(self, call: Sequence[Any], backend: str | None = None) -> str:
        """The backend for these arguments; raises if ``backend``, or the one forced by context, cannot serve them."""
        forced = backend or _forced
        if forced is None:
            return next(name for name, impl in self.implementations.items() if impl.passed_over(call) is None)
        reason = self._why_not(_known(forced), call)
        if reason is not None:
            raise RuntimeError(f"{self.name}: backend {forced!r} was asked for and cannot serve this call: {reason}")
        return forced

    def _why_not(self, backend: str, call: Sequence[Any]) -> str | None:
        if backend not in self.implementations:
            return f"this op has no such backend, only {', '.join(self.implementations)}"
        return self.implementations[backend].unsupported(*call)

    def explain(self, call: Sequence[Any], backend: str | None = None) -> str:
        """Which backend serves these arguments, and for each one preferred to it why it does not."""
        chosen = self.choose(call, backend)
        passed = []
        for name, impl in self.implementations.items():
            if name == chosen:
                break
            reason = impl.passed_over(call) or f"{chosen} was asked for"
            passed.append(f"not {name}: {reason}")
        return f"{self.name}: {chosen}" + (f" ({'; '.join(passed)})" if passed else "")


_ops: dict[str, Op] = {}
_state = threading.local()  # an op that another thread calls meanwhile is computed


class _Explained(Exception):  # noqa: N818
    """Carries an answer out of a call; reports no error."""


def explain(function: Callable[..., Any], *args: Any, **kwargs: Any) -> str:
    """Which backend a call takes and, for each one preferred to it, why it does not; computes and changes no tensor.

    What the function draws before it calls its op (the noise of ``random_masking``, unless it is given) is drawn.

    ``explain(nt_xent, z0, z1, temperature=0.1)`` answers for ``nt_xent(z0, z1, temperature=0.1)``, for example
    ``"nt_xent: cpu (not triton: it takes cuda tensors, got one on cpu)"``.

    Raises:
        Whatever the call itself raises for these arguments.
    """
    _state.explaining = True
    try:
        function(*args, **kwargs)
    except _Explained as answer:
        return str(answer)
    finally:
        _state.explaining = False
    raise TypeError(f"explain: {function!r} called no op of fastssl")


def ops() -> dict[str, Op]:
    """Every registered op by its name in ``torch.ops.fastssl``."""
    return dict(_ops)


def _known(name: str) -> str:
    if name not in BACKENDS:
        raise ValueError(f"unknown backend {name!r}: choose one of {', '.join(sorted(BACKENDS))}")
    return name


@contextmanager
def backend(name: str) -> Iterator[None]:
    """Forces one backend for all ops called inside, in every thread; a call that it cannot serve raises.

    Args:
        name: "reference", "cpu", "triton" or "cuda".
    Raises:
        ValueError: for another name.
        RuntimeError: from an op called inside, saying why the backend cannot serve it.
    """
    global _forced
    before, _forced = _forced, _known(name)
    try:
        yield
    finally:
        _forced = before


def anything(*_: Any) -> str | None:
    """The ``unsupported`` of a reference: it serves every call."""
    return None


def native_cpu(*tensors: Tensor) -> str | None:
    """Why the C++ kernels cannot take these tensors."""
    if _native.cpu is None:
        return _native.CPU_MISSING
    return _placed("cpu", *tensors)


MOST_BLOCKS = 2**31 - 1  # of a launch


def native_cuda(*tensors: Tensor, blocks: int = 0) -> str | None:
    """Why the CUDA kernels cannot take these tensors; ``blocks``: those of their largest launch, if a GPU's memory
    holds the tensors of more than a launch may have."""
    if _native.cuda is None:
        return _native.CUDA_MISSING
    if blocks > MOST_BLOCKS:
        return f"it launches at most 2^31 - 1 blocks at once, and this call needs {blocks}"
    return _placed("cuda", *tensors)


def triton(op: str, function: str) -> Callable[..., Any]:
    """The function of fastssl/ops/triton/<op>.py, imported at its first call: Triton is optional and slow to import.

    The first argument is a tensor; Triton launches on the current GPU, so that tensor's is made the current one.
    """

    def run(*args: Any) -> Any:
        with torch.cuda.device_of(args[0]):  # type: ignore[no-untyped-call]
            return getattr(import_module(f"fastssl.ops.triton.{op}"), function)(*args)

    return run


def triton_cuda(*tensors: Tensor) -> str | None:
    """Why the Triton kernels cannot take these tensors."""
    return _placed("cuda", *tensors) if _has_triton() else "triton is not installed"


def triton_floats(*tensors: Tensor) -> str | None:
    """Why the Triton kernels that multiply, whose sums are in float32, cannot take these tensors."""
    if reason := triton_cuda(*tensors):
        return reason
    if any(x.dtype == torch.float64 for x in tensors):
        return "it takes float32, bfloat16 and float16, got torch.float64"
    return None


def triton_rows(*rows: Tensor) -> str | None:
    """Why the Triton kernels of the contrastive losses cannot take these rows, which they count in 32 bits."""
    reason = triton_floats(*rows)
    for x in rows:
        if reason is None and len(x) > 2**29:  # two views of them, or twice their number, are counted too
            reason = f"it takes at most 2^29 rows, got {len(x)}"
        if reason is None and x.shape[1] > 2**22:  # 128 of them a block, of which a grid has 65535 along that axis
            reason = f"it takes at most 2^22 features, got {x.shape[1]}"
    return reason


@cache
def _has_triton() -> bool:  # a search of the path costs more than a small call
    return find_spec("triton") is not None


def refuse_gradient(op: str) -> None:
    """Makes a backward through ``op`` raise: silence would be a gradient of zero."""

    def refuse(ctx: Any, *_: Any) -> None:
        raise RuntimeError(f"{op}: gradients are not supported; detach its input, or use the formula in plain torch")

    torch.library.register_autograd(f"fastssl::{op}", refuse)


def _placed(device: str, *tensors: Tensor) -> str | None:
    first = tensors[0].device
    # there may be hundreds, at every step: one look at the first decides most, and numbers are compared faster
    there = first.type == device and len({tensor.get_device() for tensor in tensors}) == 1
    if not (there and all([x.is_cpu if device == "cpu" else x.is_cuda for x in tensors])):  # noqa: C419
        for tensor in tensors:
            if tensor.device.type != device:
                return f"it takes {device} tensors, got one on {tensor.device}"
            if tensor.device != first:
                return f"it takes tensors on one GPU, got {first} and {tensor.device}"
    for dtype in {tensor.dtype for tensor in tensors}:
        if dtype not in _native.DTYPES and dtype.is_floating_point:
            return f"it takes float32, float64, bfloat16 and float16, got {dtype}"
    return None
