"""The Triton kernels without a GPU: what they touch, interpreted, and what they are compiled to for each generation."""

from __future__ import annotations

import ast
import dataclasses
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from emulated import INTERPRETING, triton_on_cpu
from torch import Tensor

from fastssl.ops import _backend, _top_k
from fastssl.ops._backend import ops as registered

triton = pytest.importorskip("triton")

from benchmarks import kernels, spills  # noqa: E402
from benchmarks.launches import ARCHITECTURES, STEPS, Launch, Resources, dumped, launches, resources  # noqa: E402
from fastssl.ops.triton import _launch  # noqa: E402

OPS = [name for name, op in registered().items() if "triton" in op.implementations]
SHARED = {80: 166_912, 90: 232_448, 100: 232_448}  # bytes that a block may have
GUARD = 128


def guarded(shape: Any, dtype: torch.dtype, around: float) -> tuple[Tensor, Tensor]:
    """(all memory, the tensor in it): before and after it stands ``around``; it is NaN, or 0 where it counts."""
    memory = torch.full((math.prod(shape) + 2 * GUARD,), around, dtype=dtype)
    inside = memory[GUARD : memory.numel() - GUARD].view(shape)
    return memory, inside.fill_(math.nan if dtype.is_floating_point else 0)


# (queries, others...) of each op's rows, which fill no block; of the banks, one is cut into parts
RAGGED = {
    "clip_loss": (123, 123),
    "info_nce": (123, 70),
    "knn_classify": (70, 507),
    "knn_classify in parts": (3, 1091),
    "nt_xent": (61, 61),
    "queue_info_nce": (61, 61, 507),
    "siglip_loss": (123, 123),
}
# Features that fill no block either; of more than a block takes, few rows, for an interpreter is slow.
FEATURES, MANY_FEATURES, FEW_ROWS = 127, 1000, 20


def _ragged(what: str, dtype: torch.dtype, features: int = FEATURES, most: int = 2000) -> tuple[Any, ...]:
    """The op's own example, with such rows in place of its own, at most so many."""
    name = what.partition(" ")[0]
    call = list(registered()[name].example(torch.device("cpu")))
    torch.manual_seed(0)
    rows = lambda n: torch.nn.functional.normalize(torch.randn(n, features), dim=1).to(dtype)  # noqa: E731
    for place, n in enumerate(RAGGED[what]):
        call[place] = rows(min(n, most))
    if name == "info_nce":
        queries, keys = torch.arange(len(call[0])), len(call[1])
        call[2], call[3], call[4] = queries % keys, (queries + 1) % keys, rows(min(51, most))
    if name == "knn_classify":
        call[2] = torch.arange(len(call[1])) % 3
    return tuple(call)


def _ragged_frames(radius: int | None, dtype: torch.dtype) -> tuple[Any, ...]:
    """Two frames of 9 x 11 pixels with 127 features and 5 classes, of which each pixel takes 11."""
    torch.manual_seed(0)
    target, context = (torch.randn(*frames, 127, 9, 11).to(dtype) for frames in ((), (2,)))
    return target, context, torch.rand(2, 5, 9, 11), radius, 11, 0.1


EXAMPLES = {
    **{name: lambda name=name: registered()[name].example(torch.device("cpu")) for name in OPS},
    **{
        f"{what} {dtype}": lambda what=what, dtype=dtype: _ragged(what, dtype)
        for what in RAGGED
        for dtype in (torch.float32, torch.float16)
    },
    **{
        f"{what} {MANY_FEATURES} features {dtype}": lambda what=what, dtype=dtype: _ragged(
            what, dtype, MANY_FEATURES, FEW_ROWS
        )
        for what in RAGGED
        if "parts" not in what
        for dtype in (torch.float32, torch.float16)
    },
    **{
        f"propagate_labels {radius} {dtype}": lambda radius=radius, dtype=dtype: _ragged_frames(radius, dtype)
        for radius in (3, None)
        for dtype in (torch.float32, torch.float16)
    },
}


def results(name: str, backend: str, call: tuple[Any, ...]) -> list[Tensor]:
    """What an op returns, and the gradients to the rows that may ask for one."""
    leaves = call[:2] if f"{name}_backward" in OPS else ()
    with torch.enable_grad():
        got = registered()[name].call(*(x.requires_grad_() for x in leaves), *call[len(leaves) :], backend)
        found = list(got) if isinstance(got, tuple) else [got]
        if leaves:
            found += torch.autograd.grad(found[0].sum(), leaves)
    return [x.detach() for x in found]


@pytest.mark.skipif(not INTERPRETING, reason="runs under TRITON_INTERPRET=1")
@pytest.mark.parametrize("example", EXAMPLES)
def test_interpreted_kernels_stay_within_their_buffers(example: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Inputs lie between NaNs, or numbers that count nothing; what the op allocates, backward too, between canaries."""
    name, call = example.partition(" ")[0], EXAMPLES[example]()
    want = results(name, "reference", call)

    def lonely(x: Any) -> Any:
        if not isinstance(x, Tensor):
            return x
        return guarded(x.shape, x.dtype, math.nan if x.dtype.is_floating_point else -(2**31))[1].copy_(x.detach())

    allocated = []

    def empty(*shape: Any, dtype: torch.dtype = torch.float32, **_: Any) -> Tensor:
        memory, inside = guarded(shape[0] if isinstance(shape[0], (tuple, list)) else shape, dtype, -7)
        allocated.append(memory)
        return inside

    monkeypatch.setattr(torch, "empty", empty)
    monkeypatch.setattr(torch, "empty_like", lambda x: empty(x.shape, dtype=x.dtype))
    new_empty = lambda x, *shape, dtype=None, **_: empty(*shape, dtype=dtype or x.dtype)  # noqa: E731
    monkeypatch.setattr(torch.Tensor, "new_empty", new_empty)
    with triton_on_cpu():
        got = results(name, "triton", tuple(map(lonely, call)))
    monkeypatch.undo()
    assert allocated
    for memory in allocated:
        assert memory[:GUARD].eq(-7).all()
        assert memory[memory.numel() - GUARD :].eq(-7).all()
    half = any(isinstance(x, Tensor) and x.dtype == torch.float16 for x in call)
    for x, y in zip(got, want, strict=True):
        # a row of float16 is added up from numbers that were each rounded to 2^-11
        bounds = dict(rtol=2e-3, atol=2e-3 * float(y.abs().max())) if half else dict(rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(x, y, **bounds)


def test_every_op_with_triton_kernels_is_compiled_below() -> None:
    assert set(STEPS) == {name for name in OPS if not name.endswith("_backward")}


# float16 at one width alone: its code is bfloat16's but for the type
COMPILED = [
    *((torch.float16, 128, architecture) for architecture in ARCHITECTURES),
    *(
        (dtype, d, architecture)
        for architecture in ARCHITECTURES
        for dtype in (torch.float32, torch.bfloat16)
        for d in (128, 256, 512)
    ),
]
# Rows whose last features are masked, where registers are scarcest: float32 takes most of them on 8.0, and the table of
# 1000 features is that of all beyond 256 (512 on 9.0); 127 and 1001 are launched as 128 and 1004 or 1008.
# All kernels were compiled so for 192, 255, 384, 768, 1001 and 1024 features, in three types on three generations: 768
# leave the losses the fewest registers; of less than 128, those from 64 to 128 do, and 16, on 10.0. Likewise for 80 and
# 200 in all three, none of which spills.
MASKED = [
    (torch.float32, 127, 80),
    (torch.float32, 80, 80),
    (torch.float32, 200, 80),
    (torch.float32, 1001, 80),
    (torch.bfloat16, 768, 80),
    *((torch.bfloat16, 127, architecture) for architecture in ARCHITECTURES),
    (torch.bfloat16, 96, 100),
    (torch.bfloat16, 64, 100),
    (torch.float16, 64, 100),
    (torch.bfloat16, 16, 100),
    (torch.bfloat16, 192, 80),
    (torch.bfloat16, 200, 100),
    (torch.bfloat16, 1000, 100),
    *((dtype, d, 90) for dtype in (torch.float32, torch.bfloat16) for d in (16, 48, 80, 192, 200, 384, 768, 1000)),
]


# ---- accesses of 16 bytes ----


def fixed(launch: Launch, name: str) -> Any:
    """A launch's compile-time constant; ... of what is given at run time."""
    arguments = launch.kernel.arg_names
    return launch.constants.get((arguments.index(name),), ...) if name in arguments else None


def always(launch: Launch) -> bool:
    return True


def merges_numbers(launch: Launch) -> bool:
    return fixed(launch, "direction") is None


def sums_nothing(launch: Launch) -> bool:
    return fixed(launch, "OUT") == 0


def begins_anywhere(launch: Launch) -> bool:
    """Whether its rows have a number of features that is no multiple of 16."""
    return ["tt.divisibility", 16] not in launch.attributes[(launch.kernel.arg_names.index("d"),)]


def has_few_a_thread(launch: Launch) -> bool:
    """Whether a thread has less than four of the numbers that its program stores."""
    return bool(fixed(launch, "ELEMENTS") < 4 * 32 * launch.options.get("num_warps", 4))


# Launches with 128 features, or 127, that do not load 16 bytes a thread at a time, or do not store them: of a kernel,
# what tells them, and why
Exceptions = dict[str, tuple[Callable[[Launch], bool], str]]
NARROW_LOADS: Exceptions = {
    "_average_kernel": (always, "gathers what k rows of the bank have"),
    "_finish_kernel": (merges_numbers, "two numbers of each part of a row, and of one row or some"),
    "_merge_kernel": (always, "a row's candidates begin and end anywhere"),
    "_nearest_kernel": (begins_anywhere, "rows of 127 features begin anywhere"),
    "_scales_kernel": (begins_anywhere, "rows of 127 features begin anywhere"),
}
NARROW_STORES: Exceptions = {
    "_average_kernel": (always, "a number a class"),
    "_combine_kernel": (has_few_a_thread, "one or two numbers a thread are left of many parts"),
    "_finish_kernel": (always, "one or two features a thread are left of many parts, and a few numbers a row"),
    "_merge_kernel": (always, "what is kept goes where the data say"),
    "_nearest_kernel": (always, "what lies above a threshold goes to the next free place"),
    "_scales_kernel": (always, "one number is left of a row"),
    "_side_kernel": (sums_nothing, "a few numbers are left of a block"),
    "_stream_kernel": (sums_nothing, "two numbers a part of a row"),
}


def is_excepted(launch: Launch, exceptions: Exceptions) -> bool:
    applies, _ = exceptions.get(launch.kernel.__name__, (lambda _: False, ""))
    return applies(launch)


def assert_wide(launch: Launch, loads: int, stores: int) -> None:
    for moved, exceptions in ((loads, NARROW_LOADS), (stores, NARROW_STORES)):
        assert moved or is_excepted(launch, exceptions), f"{launch.name}: {loads} loads, {stores} stores of 16 bytes"


def test_every_kernel_is_compiled_below_and_every_exception_is_of_one() -> None:
    defined = {
        f"{path.stem}.{name}"
        for path in Path(_launch.__file__).parent.glob("*.py")
        for name in re.findall(r"^def (\w+_kernel)\(", path.read_text(), re.MULTILINE)
    }
    found = [launch for op in STEPS for launch in launches(op, torch.bfloat16, kernels.FEATURES, ARCHITECTURES[0])]
    assert {launch.name for launch in found} == defined
    for exceptions in (NARROW_LOADS, NARROW_STORES):
        for name, (applies, _) in exceptions.items():
            chosen = [applies(launch) for launch in found if launch.kernel.__name__ == name]
            assert any(chosen), name
            assert applies is always or not all(chosen), f"nothing is asked of {name}"


@pytest.mark.skipif(INTERPRETING, reason="interpreted kernels are not compiled")
def test_a_kernel_that_moves_less_at_a_time_is_found() -> None:
    """As one does that cannot know that its rows begin at 16 bytes."""
    right = launches("siglip_loss", torch.bfloat16, kernels.FEATURES, 80)
    (launch,) = (each for each in right if each.kernel.__name__ == "_combine_kernel" and fixed(each, "PARTS") == 1)
    narrow = dataclasses.replace(launch, attributes={})
    assert_wide(launch, *kernels.wide(dumped("sass", launch.compile(80))))
    with pytest.raises(AssertionError, match="_combine_kernel: 0 loads, 0 stores of 16 bytes"):
        assert_wide(narrow, *kernels.wide(dumped("sass", narrow.compile(80))))


@pytest.mark.skipif(INTERPRETING, reason="interpreted kernels are not compiled")
@pytest.mark.parametrize(("dtype", "d", "architecture"), [*COMPILED, *MASKED], ids=str)
@pytest.mark.parametrize("op", STEPS)
def test_compiles_for_tensor_cores_with_few_spills(op: str, dtype: torch.dtype, d: int, architecture: int) -> None:
    """As the op launches it: constants, options and the types of its arguments are those of a training step."""
    if (dtype, d, architecture) in MASKED and op in ("knn_classify", "propagate_labels"):
        pytest.skip("its blocks depend on little, and 128 features are launched as 127, too")
    published = []
    for launch in launches(op, dtype, d, architecture):
        has_products = "PRECISION" in launch.kernel.arg_names
        if d != kernels.FEATURES and not has_products:
            continue  # its code is that of 128 features but for a number
        compiled = launch.compile(architecture)
        used: kernels.Kernel | Resources = resources(compiled)
        if d == kernels.FEATURES and dtype != torch.float16:
            used = kernels.triton_kernel(launch, dtype, architecture, compiled)
            published.append(used)
        if d == kernels.FEATURES:
            assert_wide(launch, *kernels.wide(dumped("sass", compiled)))
        assert used.stack <= spills.allowed(launch.name, dtype, d, architecture), (launch.name, used)
        assert used.local == 0, (launch.name, used)
        assert used.shared <= SHARED[architecture], (launch.name, used)
        if has_products:
            wanted = r"\b(mma|wgmma|tcgen05)\b"
            if dtype != torch.float32 and architecture > 80:
                wanted = r"\bwgmma\b" if architecture == 90 else r"\btcgen05\b"
            assert re.search(wanted, compiled.asm["ptx"]), f"{launch.name}: no tensor-core instruction"
    changed = kernels.outdated(kernels.rows(published), "triton", triton.__version__)
    if changed is None:
        pytest.skip(f"the committed table of kernels is of another Triton than {triton.__version__}")
    assert not changed, "run python -m benchmarks.kernels, then python -m benchmarks.publish"


def test_more_than_a_grid_holds_is_refused_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_backend, "triton_floats", lambda *_: None)  # these lie on no GPU
    one = torch.zeros(1)
    assert _backend.triton_rows(one.expand(2**29, 2**22)) is None
    assert _backend.triton_rows(one.expand(2, 2**22 + 1)) == f"it takes at most 2^22 features, got {2**22 + 1}"
    assert _backend.triton_rows(one.expand(2**29 + 1, 2)) == f"it takes at most 2^29 rows, got {2**29 + 1}"
    assert _top_k.triton_unsupported(2**20, 2**31 - 2**16, 5) is None
    assert "queries, got 2147483648" in str(_top_k.triton_unsupported(2**31, 8, 5))


def test_products_name_their_precision_and_kernels_are_chosen_without_a_search() -> None:
    """And a product is added to sums that are there, in float32: ``dot(a, b, sums)``."""
    products = 0
    for path in Path(_launch.__file__).parent.glob("*.py"):
        source = path.read_text()
        assert not re.search(r"autotune|\batomic_", source), path
        for call in (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)):
            if isinstance(call.func, ast.Attribute) and call.func.attr == "dot":
                products += 1
                assert len(call.args) == 3, f"{path.name}:{call.lineno}"
                assert "input_precision" in {keyword.arg for keyword in call.keywords}, f"{path.name}:{call.lineno}"
    assert products >= 3


def test_float32_is_multiplied_as_torch_may_multiply_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also once torch's newer setting is used, after which reading the older one raises."""
    float32_precision = _launch.float32_precision
    assert float32_precision() == "tf32x3"
    if not hasattr(torch.backends.cuda.matmul, "fp32_precision"):
        monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", True)
        assert float32_precision() == "tf32"
        return
    before = torch.backends.cuda.matmul.fp32_precision
    try:
        for chosen, products in (("tf32", "tf32"), ("ieee", "tf32x3")):
            torch.backends.cuda.matmul.fp32_precision = chosen
            assert float32_precision() == products
    finally:
        torch.backends.cuda.matmul.fp32_precision = before
