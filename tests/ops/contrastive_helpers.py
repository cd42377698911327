"""What the tests of the contrastive losses share; some of it serves other ops too."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any, TypeVar

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
TEMPERATURES = [0.01, 0.02, 0.07, 0.2, 1.0]
T = TypeVar("T")
CANCELLING = {"all equal", "zeros"}  # degenerate rows whose gradients are nothing
linux_only = pytest.mark.skipif(sys.platform != "linux", reason="reads the high-water mark from /proc")


@pytest.fixture(autouse=True)
def _tensors_are_made_on_the_engines_device(request: pytest.FixtureRequest) -> Iterator[None]:
    device = request.getfixturevalue("engine").device if "engine" in request.fixturenames else torch.device("cpu")
    with nullcontext() if device.type == "cpu" else device:
        yield


def needs_float64(engine: Any, dtype: torch.dtype = torch.float64) -> None:
    """Skips a test of float64 where the kernels take none."""
    if engine.backend == "triton" and dtype == torch.float64:
        pytest.skip("the Triton kernels take no float64")


def needs_speed(engine: Any, n: int, m: int, d: int) -> None:
    """Skips a test of so many similarities that an interpreter would take minutes for them."""
    if engine.slow and n * m * max(d, 64) > 4_000_000:
        pytest.skip(f"{n} x {m} similarities of {d} features take Triton's interpreter minutes")


def some(engine: Any, settings: list[T]) -> list[T]:
    """All settings, or every other one where one takes an interpreter seconds."""
    return settings[1::2] if engine.slow else settings


def rows(n: int, d: int, seed: int, like: Tensor | None = None) -> Tensor:
    """n unit vectors; given ``like``, every other one is that with noise, a positive that stands out as in training.

    The others are related to nothing: at low temperatures, only they have a gradient to speak of.
    """
    noise = torch.randn(n, d, generator=torch.Generator().manual_seed(seed), device="cpu")
    noise = noise.to(torch.get_default_device())
    if like is not None:
        noise[::2] = like[::2] + 0.7 / d**0.5 * noise[::2]
    return normalize(noise, dim=1)


def results(loss_function: Callable[..., Tensor], *inputs: Tensor) -> list[Tensor]:
    """The loss, and its gradient to every input; losses that are no scalar are weighted unequally first."""
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    loss = loss_function(*leaves)
    (loss * torch.linspace(1, 2, loss.numel(), dtype=loss.dtype).view(loss.shape)).sum().backward()
    return [loss.detach(), *(leaf.grad for leaf in leaves)]


def assert_as_good_as_plain_torch(
    ours: Callable[..., Tensor],
    plain: Callable[..., Tensor],
    *inputs: Tensor,
    scale: float,
    narrow: bool = False,
    cancels: bool = False,
) -> None:
    """At most twice plain torch's error, of loss and gradients in the norm; logits are up to ``scale``.

    Sums of 16-bit inputs are ours to keep in float32, so plain torch is given them in float32, and its gradients are
    rounded; ``narrow`` is what rounds its inputs to 16 bits anew, as plain torch then does. Below that, which of the
    two is nearer is chance: weights and results of a gradient's dtype are each rounded by up to eps / 2 of themselves,
    and a logit by some eps of its size, which its exponential has as a relative error. So a gradient is judged by its
    own size, and no bound comes near that. By the size of their terms are judged the loss, the gradients of settings,
    and, where all but nothing is left of them, because they ``cancel``, those of rows.
    """
    exact = results(plain, *(x.double() for x in inputs))
    wide = torch.float64 if inputs[0].dtype == torch.float64 else torch.float32
    rivals = results(plain, *(x if narrow else x.to(wide) for x in inputs))
    of_rows = scale / len(inputs[0]) ** 0.5 if cancels else 0.0
    terms = [of_rows if x.dim() else scale / (abs(x.item()) or scale) for x in inputs]
    for got, rival, want, least in zip(results(ours, *inputs), rivals, exact, [1.0, *terms], strict=True):
        given = got.dtype if not narrow else inputs[0].dtype
        error, rival_error = ((x.to(got.dtype).double() - want).norm().item() for x in (got, rival))
        size = max(want.norm().item(), least)
        chance = torch.finfo(given).eps + 8 * torch.finfo(wide).eps * (1 + scale)
        allowed = 2 * rival_error + chance * size
        assert error <= allowed, (error, rival_error, size)
        assert allowed <= size / 8, f"a wrong gradient would pass: {allowed} of {size}"


WRONG: dict[str, Callable[[Tensor], Tensor]] = {
    "zero": torch.zeros_like,
    "negated": torch.neg,
    "halved": lambda grad: grad / 2,
    "a fifth too large": lambda grad: grad * 1.2,
    "of the next row": lambda grad: grad.roll(1, 0),
}


class _Changed(torch.autograd.Function):
    """Hands its input on, and back a changed gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.change = change
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return ctx.change(grad), None


def assert_wrong_gradients_are_refused(names: dict[str, Any], op: str, compare: Callable[[], None]) -> None:
    """Of a test module's names: its comparison fails with an op that is right but for one of its two gradients."""
    right = names[op]
    compare()
    for what, change in WRONG.items():
        for place in (0, 1):

            def wrong(*inputs: Tensor, place: int = place, change: Any = change, **options: Any) -> Tensor:
                return right(*(_Changed.apply(x, change) if i == place else x for i, x in enumerate(inputs)), **options)

            with pytest.MonkeyPatch.context() as patch:
                patch.setitem(names, op, wrong)
                try:
                    compare()
                except AssertionError:
                    continue
            pytest.fail(f"a gradient that is {what} passes")


def assert_any_layout(loss_function: Callable[..., Tensor], *inputs: Tensor, exactly: bool) -> None:
    """Columns first, and among others that are NaN: the same loss and gradients, to the bit where kernels copy them."""
    want = results(loss_function, *inputs)
    for laid_out in (_columns_first, _with_gaps):
        got = results(lambda *x, f=laid_out: loss_function(*(f(y) for y in x)), *inputs)
        for x, y in zip(got, want, strict=True):
            torch.testing.assert_close(x, y, rtol=0 if exactly else 1e-5, atol=0 if exactly else 1e-6)


def _columns_first(x: Tensor) -> Tensor:
    return x.T.contiguous().T


def _with_gaps(x: Tensor) -> Tensor:
    return torch.stack([x, torch.full_like(x, float("nan"))], 2)[:, :, 0]


def assert_same_bits_with_any_number_of_threads(work: Callable[[], list[Tensor]], engine: Any) -> None:
    before = torch.get_num_threads()
    want = work()
    try:
        for threads in (before,) if engine.slow else (1, 2, 3, 16, before):  # a GPU's kernels know of no threads
            if engine.backend != "reference":
                torch.set_num_threads(threads)
            for got, expected in zip(work(), want, strict=True):
                assert torch.equal(got, expected)
    finally:
        torch.set_num_threads(before)


MEASURE = """
import re, sys, torch
from torch.nn.functional import normalize
from fastssl import ops
torch.set_num_threads(2)
def rows(n, d):
    return normalize(torch.randn(n, d), dim=1).requires_grad_()
def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) / 1024
backend = sys.argv[1]
"""


def extra_megabytes(setup: str, small: str, large: str, backend: str) -> float:
    """What ``large`` adds to the high-water mark of a process of its own, after ``setup`` and ``small`` ran in it."""
    code = f"{MEASURE}\n{setup}\n{small}\nbefore = peak()\n{large}\nprint(peak() - before)"
    done = subprocess.run([sys.executable, "-c", code, backend], capture_output=True, text=True, check=True)
    return float(done.stdout)


def pairs(n: int, d: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    first = rows(n, d, 0)
    return first.to(dtype), rows(n, d, 1, like=first).to(dtype)


def degenerate_pairs() -> dict[str, tuple[Tensor, Tensor]]:
    a, b = pairs(100, 16)
    return {
        "duplicates": (a.repeat_interleave(2, 0), b.repeat_interleave(2, 0)),
        "all equal": (a[:1].repeat(100, 1), a[:1].repeat(100, 1)),
        "orthogonal": (torch.eye(100, 16), torch.eye(100, 16).flip(1)),
        "zeros": (torch.zeros(100, 16), torch.zeros(100, 16)),
    }


BAD_PAIRS: list[tuple[dict[str, object], type[Exception], str]] = [
    (dict(b=torch.zeros(8, 3)), ValueError, r"a and b must have the same shape \(N, D\); got \(8, 4\) and \(8, 3\)"),
    (dict(b=torch.zeros(9, 4)), ValueError, r"got \(8, 4\) and \(9, 4\)"),
    (dict(a=torch.zeros(8)), ValueError, r"a must have shape \(N, D\); got \(8\)"),
    (dict(a=torch.zeros(0, 4), b=torch.zeros(0, 4)), ValueError, r"one pair and one feature; got \(0, 4\)"),
    (dict(a=torch.zeros(8, 0), b=torch.zeros(8, 0)), ValueError, r"one pair and one feature; got \(8, 0\)"),
    (dict(b=torch.zeros(8)), ValueError, r"b must have shape \(N, D\); got \(8\)"),
    (dict(b=None), TypeError, "b must be a tensor; got NoneType"),
    (dict(b=torch.zeros(8, 4).double()), TypeError, "one dtype; got torch.float32 and torch.float64"),
    (dict(a=torch.zeros(8, 4).long()), TypeError, "a must be float32.*got torch.int64"),
    (dict(a=[1.0]), TypeError, "a must be a tensor; got list"),
    (dict(b=torch.zeros(8, 4, device="meta")), ValueError, "one device; got cpu and meta"),
    (dict(backend="cuda"), RuntimeError, "no such backend, only triton, cpu, reference"),
]
