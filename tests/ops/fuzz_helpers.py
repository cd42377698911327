"""What the fuzz draws, how it runs a call, and what of it may be rounded: tensors in any layout, on every engine."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

import pytest
import torch
from emulated import INTERPRETING, cuda_on_cpu, triton_on_cpu
from hypothesis import strategies as st
from isas import ISAS
from torch import Tensor

from fastssl import ops
from fastssl.ops import _native

FLOATS = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
SIZES = [1, 2, 3, 4, 5, 7, 8, 13, 16, 17, 31, 33, 64, 65, 67, 127, 131]  # the first are what an example shrinks to
LAYOUTS = ["plain", "offset", "transposed", "gaps", "gaps everywhere", "negated", "expanded"]
WILD = [0.0, -0.0, 1e-45, -1e-40, 1e-38, 1e-8, 6e4, -1e19, 3e38, -3.4e38, 1e300, math.inf, -math.inf, math.nan]
T = TypeVar("T")


class Drawn:
    """One example: sizes, settings and tensors. ``wild`` ones hold every magnitude, infinity and NaN."""

    def __init__(self, draw: Callable[..., Any], wild: bool) -> None:
        self.draw, self.wild = draw, wild
        self._generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))

    def size(self, least: int = 1, most: int = 131) -> int:
        """A ragged size; 0 too where ``least`` allows it."""
        return int(self.pick([n for n in (*SIZES, 0) if least <= n <= most]))

    def pick(self, values: Sequence[T]) -> T:
        """One of the values, of which the first are what an example shrinks to."""
        return self.draw(st.sampled_from(values))

    def chance(self) -> bool:
        return bool(self.draw(st.booleans()))

    def dtype(self) -> torch.dtype:
        return self.pick(FLOATS)

    def number(self, low: float, high: float) -> float:
        return float(self.draw(st.floats(low, high)))

    def scale(self, low: float, high: float) -> float | Tensor:
        """A setting as a number, or as a tensor without dimensions of any type."""
        value = self.number(low, high)
        return value if self.chance() else torch.tensor(value, dtype=self.dtype())

    def integers(self, shape: Sequence[int], limit: int) -> Tensor:
        """int64 in [0, limit), in any layout."""
        return self.laid_out(torch.randint(max(limit, 1), tuple(shape), generator=self._generator))

    def permutations(self, rows: int, length: int) -> Tensor:
        return self.laid_out(torch.rand(rows, length, generator=self._generator).argsort(1))

    def rows(self, n: int, d: int, dtype: torch.dtype) -> Tensor:
        """Features: unit vectors, longer or shorter ones, duplicates, zeros."""
        x = torch.randn(n, d, generator=self._generator, dtype=torch.float64)
        x = x / x.norm(dim=1, keepdim=True) * self.pick([1.0, 1e-3, 8.0, 0.0])
        if self.chance():
            x[1::2] = x[: 2 * (n // 2) : 2]
        return self.laid_out(self._unleashed(x.to(dtype)))

    def numbers(
        self, shape: Sequence[int], dtype: torch.dtype, low: float = -3, high: float = 3, written: bool = False
    ) -> Tensor:
        """Evenly spread in [low, high], some of them alike; ``written`` if the op writes them, so none share memory."""
        x = low + (high - low) * torch.rand(tuple(shape), generator=self._generator, dtype=torch.float64)
        return self.laid_out(self._unleashed((x.round() if self.chance() else x).to(dtype)), written)

    def _unleashed(self, x: Tensor) -> Tensor:
        if not self.wild or x.numel() == 0:
            return x
        chosen = self.draw(st.lists(st.sampled_from(WILD), min_size=1, max_size=3))
        values = torch.tensor(chosen, dtype=torch.float64).to(x.dtype)
        which = torch.randint(len(chosen), x.shape, generator=self._generator)
        share = self.pick([0.02, 0.3, 1.0])
        changed = torch.rand(x.shape, generator=self._generator) < share
        return torch.where(changed, values[which], x)

    def laid_out(self, x: Tensor, written: bool = False) -> Tensor:
        """The same values elsewhere in memory, among elements that nobody may read or write."""
        layout = self.pick([name for name in LAYOUTS if not (written and name in ("expanded", "negated"))])
        if layout == "expanded" and x.dim() and x.shape[0] > 1:
            return x[:1].expand(x.shape)
        if layout == "negated" and x.dtype.is_floating_point:
            return torch._neg_view(-x)
        steps = [2 if layout == "gaps everywhere" else 1] * x.dim()
        if layout == "gaps" and steps:
            steps[-1] = 2
        room = [step * size for step, size in zip(steps, x.shape, strict=True)]
        offset = 0 if layout == "plain" else 3
        poison = math.nan if x.dtype.is_floating_point else x.dtype != torch.bool and torch.iinfo(x.dtype).min
        storage = torch.full((math.prod(room) + 2 * offset,), poison, dtype=x.dtype)
        inner = storage[offset : offset + math.prod(room)]
        if layout == "transposed" and x.dim():
            inner = inner.view(room[::-1]).permute(*reversed(range(x.dim())))
        else:
            inner = inner.view(room)[tuple(slice(None, None, step) for step in steps)]
        return inner.copy_(x)


class Terms(NamedTuple):
    """What gradients are the sums of: a logit's largest size, of which each term has an eps as its relative error, and
    the sizes of the terms, in the gradients of settings by name and in those of rows in the norm."""

    logit: float
    of_settings: dict[str, float]
    of_rows: float

    def allowed(self, gradient: str, exact: Tensor, dtype: torch.dtype, units: float) -> float:
        """The error, in the norm. Terms that rows are the sums of may be rounded to 16 bits, and results are."""
        of_setting = self.of_settings.get(gradient.removeprefix("gradient of "))
        terms, size = of_setting or self.of_rows, float(exact.norm())
        rounded = size if of_setting else max(terms, size)
        finfo = torch.finfo(dtype)
        return 2 * finfo.eps * rounded + units * self.logit * max(terms, size) + finfo.tiny


def tensors_of(value: object) -> Iterator[Tensor]:
    """The tensors in an argument or a result: it, or the elements of a list of them."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from tensors_of(part)


def mapped(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """The same argument with its tensors changed."""
    if isinstance(value, Tensor):
        return change(value)
    if not isinstance(value, (list, tuple)):
        return value
    return getattr(type(value), "_make", type(value))(mapped(part, change) for part in value)


def in_memory(x: Tensor) -> bool:
    """Whether a tensor's elements lie in memory, this process's or a GPU's, as its strides say."""
    return x.device.type in ("cpu", "cuda") and x.layout == torch.strided


def memory(x: Tensor) -> Tensor:
    """The bytes of a tensor's whole storage."""
    return torch.empty(0, dtype=torch.uint8, device=x.device).set_(x.untyped_storage())


def copied(x: Tensor, device: torch.device | None = None) -> Tensor:
    """The same tensor in the same layout in memory of its own, with what lies around it; on ``device`` or its own."""
    if not in_memory(x):
        return x.clone()
    there = memory(x).to(device or x.device, copy=True).untyped_storage()
    twin = torch.empty(0, dtype=x.dtype, device=there.device)
    twin.set_(there, x.storage_offset(), x.shape, x.stride())
    return torch._neg_view(twin) if x.is_neg() else twin


def engines() -> Iterator[str]:
    """Each backend that this machine's processor serves, forced; the C++ ones with every instruction set it has."""
    with ops.backend("reference"):
        yield "reference"
    if INTERPRETING:
        with triton_on_cpu(), ops.backend("triton"):
            yield "triton-interpreted"
        return
    with cuda_on_cpu(), ops.backend("cuda"):
        yield "cuda-emulated"
    fastest = _native.cpu.supported_isa()
    try:
        for isa in ISAS[: ISAS.index(fastest) + 1]:
            _native.cpu.set_isa(isa)
            with ops.backend("cpu"):
                yield f"cpu-{isa}"
    finally:
        _native.cpu.set_isa(fastest)


def on_every_engine(call: Callable[[], T]) -> dict[str, T]:
    """What a call gives on each engine that can serve it; the reference serves all."""
    found = {}
    for engine in engines():
        try:
            found[engine] = call()
        except pytest.skip.Exception:  # what Triton's interpreter has no product of
            continue
        except RuntimeError as error:
            if engine == "reference" or "cannot serve this call" not in str(error):
                raise
    return found


def run(
    name: str, arguments: dict[str, Any], written: Sequence[str] = (), asking: Sequence[str] = ()
) -> dict[str, Tensor]:
    """Calls an op on copies of its arguments; its results, what it wrote, and the gradients of what asks for them.

    Asserts that no byte changed but those of tensors that it writes.
    """
    given = {key: mapped(value, copied) for key, value in arguments.items()}
    leaves = {key: given[key].requires_grad_() for key in asking}
    returned = getattr(ops, name)(**given)
    found = {f"result {i}": x for i, x in enumerate(tensors_of(returned))}
    if leaves and all(x.requires_grad for x in found.values()):
        upstream = [
            torch.linspace(1, 2, x.numel(), dtype=x.dtype, device=x.device).view(x.shape) for x in found.values()
        ]
        grads = torch.autograd.grad(list(found.values()), list(leaves.values()), upstream)
        found |= {f"gradient of {key}": grad for key, grad in zip(leaves, grads, strict=True)}
    for key in (key for key in written if key in given):
        found |= {f"{key} {i}": x.clone() for i, x in enumerate(tensors_of(given[key]))}
    for key, value in arguments.items():
        for before, after in zip(tensors_of(value), tensors_of(given[key]), strict=True):
            if in_memory(before):
                if key in written:
                    after.copy_(before)
                assert torch.equal(memory(before), memory(after.detach())), f"{name} wrote around or into {key}"
    return {key: x.detach() for key, x in found.items()}
