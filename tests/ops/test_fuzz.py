"""Every op with arguments drawn at random: it agrees with its formula or says in words what it needs, and never more.

`pytest tests/ops/test_fuzz.py --hypothesis-profile thorough` draws hundreds of times as many, anew at each run.
"""

from __future__ import annotations

import fractions
import inspect
import re
import warnings
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("hypothesis")

from fuzz_agree import assert_agree
from fuzz_calls import CALLS, Arguments, largest
from fuzz_helpers import Drawn, in_memory, mapped, memory, on_every_engine, run, tensors_of
from hypothesis import given
from hypothesis import strategies as st
from small_calls import asking, drawn
from torch import Tensor

from fastssl import ops

OPS = sorted(name for name in ops.__all__ if name.islower() and name not in {"backend", "explain", "gamut_bins"})
WRONG_DTYPES = [torch.int64, torch.bool, torch.complex64, torch.uint8, torch.int32, torch.float8_e4m3fn]
ODD = [
    *(None, True, 0, -1, 1, 7, 10**400, -(2**63), 2**62, 0.0, -0.5, 0.5, 1e-320, 1e-46, 1e308, 3e38),
    *(float("nan"), float("inf"), float("-inf"), 1j, "0.5", "mean", b"", [], [1.0], {}, object()),
    *(fractions.Fraction(1, 2), np.float32(0.5), np.int64(2), np.float64("nan"), np.ones(2)),
    *(torch.tensor(0.5), torch.tensor([0.5]), torch.tensor(2), torch.tensor(float("nan")), torch.tensor(True)),
    *(
        torch.tensor(0.5, device="meta"),
        torch.tensor(1j),
        torch.empty(0),
        torch.empty(0, 0, 0),
        torch.eye(3).to_sparse(),
    ),
]


@st.composite
def calls(draw: Any, name: str, wild: bool = False) -> Arguments:
    return CALLS[name].arguments(Drawn(draw, wild))


@pytest.mark.parametrize("name", OPS)
def test_fuzz_knows_every_op(name: str) -> None:
    assert name in CALLS, f"add {name} to CALLS in tests/ops/fuzz_calls.py: docs/adding-an-op.md says how"


def assert_shaped_like_the_fake(name: str, arguments: Arguments, got: dict[str, Tensor]) -> None:
    """Shapes and dtypes of the results are those that a compiler was told."""
    there = {key: mapped(value, lambda x: x.to("meta")) for key, value in arguments.items()}
    want = [(x.shape, x.dtype) for x in tensors_of(getattr(ops, name)(**there))]
    assert [(x.shape, x.dtype) for key, x in got.items() if key.startswith("result")] == want


@pytest.mark.parametrize("name", sorted(CALLS))
@given(data=st.data())
def test_fuzz_of_valid_calls_agrees_with_the_formula(name: str, data: st.DataObject) -> None:
    op = CALLS[name]
    arguments = data.draw(calls(name))
    able = asking(name, arguments)
    wanted = data.draw(st.lists(st.sampled_from(able), unique=True)) if able else []
    threads = torch.get_num_threads()
    torch.set_num_threads(data.draw(st.sampled_from([2, 1, 3])))
    try:
        results = on_every_engine(lambda: run(name, arguments, op.written, wanted))
    finally:
        torch.set_num_threads(threads)
    for got in results.values():
        assert_shaped_like_the_fake(name, arguments, got)
    assert_agree(name, arguments, wanted, results)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["clip_loss", "info_nce", "nt_xent", "queue_info_nce", "siglip_loss"])
def test_fuzz_refuses_half_a_gradient(name: str, dtype: torch.dtype) -> None:
    """But where it is lost among the terms that it is the sum of: of like rows, or positives that stand out."""
    refused, count = 0, 0
    for arguments in drawn(name, dtype, 12):
        asked = asking(name, arguments)
        with ops.backend("reference"):
            got = run(name, arguments, (), asked)
        assert_agree(name, arguments, asked, {"reference": got})
        for key in (key for key, x in got.items() if key.startswith("gradient") and x.dim() and x.any()):
            count += 1
            try:
                assert_agree(name, arguments, asked, {"reference": got | {key: got[key] / 2}})
            except AssertionError:
                refused += 1
    assert count >= 9
    assert refused >= 0.7 * count, (refused, count)


@pytest.mark.parametrize("name", sorted(CALLS))
@given(data=st.data())
def test_fuzz_of_any_values_never_ends_the_process(name: str, data: st.DataObject) -> None:
    op = CALLS[name]
    arguments = data.draw(calls(name, wild=True))
    wanted = asking(name, arguments)
    finite = all(x.isfinite().all() for value in arguments.values() for x in tensors_of(value))
    poisoned = not finite and any(x.isnan().any() for value in arguments.values() for x in tensors_of(value))
    nans = {}
    results = on_every_engine(lambda: run(name, arguments, op.written, wanted))
    for engine, got in results.items():
        assert_shaped_like_the_fake(name, arguments, got)
        nans[engine] = {key: x.isnan() for key, x in got.items() if key.startswith("result")}
        if finite and largest(*arguments.values()) < 1e15:  # beyond, sums overflow or do not, as their order has it
            for key, x in got.items():
                lost = x.isnan() & results["reference"][key].isfinite()
                assert not lost.any(), f"{engine}: {key} is NaN, of finite numbers"
    if poisoned:  # what is lost to a NaN in the formula may not look like a number
        with ops.backend("reference"):  # without what overflows, or does not, as the order of a sum has it
            tamed = run(name, {key: mapped(value, without_overflow) for key, value in arguments.items()}, op.written)
        for engine, found in nans.items():
            for key, lost in nans["reference"].items():
                assert (found[key] | ~(lost & tamed[key].isnan())).all(), f"{engine}: {key}"


def without_overflow(x: Tensor) -> Tensor:
    return x.where(x.isnan() | (x.abs() < 1e4), x.sign()) if x.is_floating_point() else x


@st.composite
def changed(draw: Any, value: object) -> object:
    """Something that an argument is not: another kind of thing, or a tensor that differs in one way."""
    if isinstance(value, list) and value and draw(st.booleans()):
        kept = draw(st.integers(0, len(value) - 1))
        return draw(st.sampled_from([value[:kept], [*value, value[kept]], [*value[:kept], draw(changed(value[kept]))]]))
    if hasattr(value, "_replace") and draw(st.booleans()):
        field = draw(st.sampled_from(value._fields))
        return value._replace(**{field: draw(changed(getattr(value, field)))})
    if not isinstance(value, Tensor) or draw(st.integers(0, 3)) == 0:
        return draw(st.sampled_from(ODD))
    kind = draw(st.sampled_from(["dtype", "meta", "cut", "one", "more", "fewer", "flat", "T", "far", "sparse", "list"]))
    dim = draw(st.integers(0, max(value.dim() - 1, 0)))
    if kind == "dtype":
        return value.to(draw(st.sampled_from(WRONG_DTYPES)))
    if kind == "meta":
        return value.to("meta")
    if kind in ("cut", "one") and value.dim():
        return value.narrow(dim, 0, min(int(kind == "one"), value.shape[dim]))
    if kind == "far":
        return value.to(torch.float32 if value.dtype == torch.bool else value.dtype) * 3 - 2
    if kind == "sparse":
        return value.contiguous().to_sparse() if value.dim() else value
    return {
        "more": lambda: value[None],
        "fewer": lambda: value[0] if value.dim() and len(value) else value,
        "flat": lambda: value.flatten(),
        "T": lambda: value.movedim(0, -1) if value.dim() else value,
        "list": lambda: value.tolist(),
    }.get(kind, lambda: None)()


def outcome(name: str, arguments: Arguments) -> dict[str, Tensor] | Exception:
    """The results, or what the op said; anything else it raises passes through."""
    try:
        return run(name, arguments, CALLS[name].written)
    except (ValueError, TypeError) as error:
        if not str(error).startswith(f"{name}: "):
            raise
        return error


# what is said of the values that a tensor on the device holds
OF_VALUES = r"must be in \[0, |augment: (crop|order|sigma|the factors|the turn|offsets, heights) .*; got [^(]"


def comparable(outcomes: dict[str, Any]) -> list[Any]:
    """Those of engines that look at the same things: nothing waits for a GPU to see which values a tensor holds."""
    told = outcomes["reference"]
    unseen = isinstance(told, ValueError) and re.search(OF_VALUES, str(told)) is not None
    return [found for engine, found in outcomes.items() if not (unseen and engine == "cuda-emulated")]


@pytest.mark.parametrize("name", sorted(CALLS))
@given(data=st.data())
def test_fuzz_of_wrong_calls_is_answered_in_words(name: str, data: st.DataObject) -> None:
    """And a refused call changed nothing."""
    arguments = data.draw(calls(name))
    names = [key for key in inspect.signature(getattr(ops, name)).parameters if key not in {"backend", "device"}]
    for key in data.draw(st.lists(st.sampled_from(names), min_size=1, max_size=2, unique=True)):
        arguments[key] = data.draw(changed(arguments.get(key)))
    held = [x for value in arguments.values() for x in tensors_of(value) if in_memory(x)]
    before = [memory(x).clone() for x in held]
    outcomes = comparable(on_every_engine(lambda: outcome(name, arguments)))
    assert all(torch.equal(x, memory(y)) for x, y in zip(before, held, strict=True))
    kinds = {type(found) for found in outcomes}
    assert len(kinds) == 1, f"engines disagree: {outcomes}"
    if kinds == {dict}:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert_shaped_like_the_fake(name, arguments, outcomes[0])
