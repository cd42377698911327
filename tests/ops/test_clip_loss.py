"""CLIP's loss against its formula in float64, on every engine."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from beyond_32_bits import DEVICES, coded, how_many
from contrastive_helpers import (
    BAD_PAIRS,
    CANCELLING,
    DTYPES,
    _tensors_are_made_on_the_engines_device,  # noqa: F401
    assert_any_layout,
    assert_as_good_as_plain_torch,
    assert_same_bits_with_any_number_of_threads,
    assert_wrong_gradients_are_refused,
    degenerate_pairs,
    extra_megabytes,
    linux_only,
    needs_float64,
    needs_speed,
    pairs,
    results,
    some,
)
from torch import Tensor

from fastssl.ops import clip_loss
from fastssl.ops.clip_loss import reference  # type: ignore[attr-defined]

BACKENDS = ("reference", "cpu", "triton")
SHAPES = [(1, 1), (3, 2), (7, 128), (48, 5), (96, 16), (97, 64), (123, 100), (252, 512), (507, 31)]
SCALES = [1.0, 1 / 0.07, 5.0, 100.0, 50.0, -3.0]


def check(a: Tensor, b: Tensor, scale: float, cancels: bool = False) -> None:
    """Of a scale without gradient, which kernels take as it is, and in float32, which they scale, of one with."""
    ours, plain = (lambda a, b, f=f: f(a, b, logit_scale=scale) for f in (clip_loss, reference))
    assert_as_good_as_plain_torch(ours, plain, a, b, scale=abs(scale), cancels=cancels)
    if a.dtype == torch.float32:
        ours, plain = (lambda a, b, s, f=f: f(a, b, logit_scale=s) for f in (clip_loss, reference))
        assert_as_good_as_plain_torch(ours, plain, a, b, torch.tensor(scale), scale=abs(scale), cancels=cancels)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("n", "d"), SHAPES)
def test_equals_the_formula(engine, n: int, d: int, dtype: torch.dtype) -> None:
    needs_float64(engine, dtype)
    needs_speed(engine, n, n, d)
    for scale in some(engine, SCALES):
        check(*pairs(n, d, dtype), scale)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_wrong_gradient_is_refused(dtype: torch.dtype) -> None:
    for scale in SCALES:
        assert_wrong_gradients_are_refused(globals(), "clip_loss", lambda s=scale: check(*pairs(20, 16, dtype), s))


@pytest.mark.parametrize("case", degenerate_pairs())
def test_degenerate_rows(engine, case: str) -> None:
    check(*degenerate_pairs()[case], 10.0, cancels=case in CANCELLING)


def test_rows_of_very_different_lengths(engine) -> None:
    """Log-sum-exps hundreds apart: no single shift serves a tile, forward or backward."""
    a, b = pairs(150, 32)
    lengths = torch.logspace(-2, 1.3, 150)[:, None]
    function = functools.partial(clip_loss, logit_scale=2.0)
    want = results(
        functools.partial(reference, logit_scale=2.0), (a * lengths).double(), (b * lengths.flip(0)).double()
    )
    for got, expected in zip(results(function, a * lengths, b * lengths.flip(0)), want, strict=True):
        assert (got.double() - expected).norm() <= 1e-5 * expected.norm()


def test_a_loss_near_zero_keeps_its_digits(engine) -> None:
    a, b = torch.eye(8), 2 * torch.eye(8) - 1
    got = results(functools.partial(clip_loss, logit_scale=10.0), a, b)
    want = results(functools.partial(reference, logit_scale=10.0), a.double(), b.double())
    assert want[0] < 1e-7
    for x, y in zip(got, want, strict=True):
        if engine.backend == "cpu":
            torch.testing.assert_close(x.double(), y, rtol=1e-5, atol=0)


@pytest.mark.parametrize("device", DEVICES)
def test_more_pairs_than_32_bits_count(device: str) -> None:
    codes, (of_a, of_b) = coded(46_400, 46_400)  # squared, over 2^31
    a, b = (codes.float()[code].to(device) for code in (of_a, of_b))
    loss, *grads = results(functools.partial(clip_loss, logit_scale=3.0), a, b)

    logits, own = 3 * codes @ codes.T, (of_a, of_b)
    lse_a, lse_b = (logits.exp() @ how_many(of_b)).log(), (how_many(of_a) @ logits.exp()).log()
    want = ((lse_a[of_a] + lse_b[of_b]) / 2 - logits[own]).mean()
    torch.testing.assert_close(loss.item(), want.item(), rtol=1e-6, atol=0)
    weights = (logits - lse_a[:, None]).exp() + (logits - lse_b).exp()
    want_a = ((weights * how_many(of_b)) @ codes)[of_a] - 2 * codes[of_b]
    want_b = ((weights.T * how_many(of_a)) @ codes)[of_b] - 2 * codes[of_a]
    for got, expected in zip(grads, (want_a, want_b), strict=True):
        got = got.cpu().double() * (2 * len(a) / 3)
        assert (got - expected).norm() <= 1e-5 * expected.norm()


@pytest.mark.usefixtures("other_working_memory")
def test_same_bits_again_and_with_any_number_of_threads(engine) -> None:
    needs_speed(engine, 500, 500, 48)
    work = functools.partial(results, functools.partial(clip_loss, logit_scale=10.0), *pairs(500, 48))
    assert_same_bits_with_any_number_of_threads(work, engine)


def test_non_contiguous_inputs(engine) -> None:
    loss = functools.partial(clip_loss, logit_scale=3.0)
    assert_any_layout(loss, *pairs(60, 24), exactly=engine.backend == "cpu")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("where", [0, 1])
def test_bad_values_give_nan(engine, value: float, where: int) -> None:
    tensors = pairs(120, 8)
    tensors[where][100, 3] = value
    assert torch.isnan(clip_loss(*tensors, logit_scale=2.0))


def test_gradient_only_where_asked(engine) -> None:
    tensors = *pairs(10, 4), torch.tensor(2.0)
    for asked in tensors:
        asked.requires_grad_()
        a, b, scale = tensors
        clip_loss(a, b, logit_scale=scale).backward()
        assert asked.grad is not None
        assert all(x.grad is None for x in tensors if x is not asked)
        asked.grad = None
        asked.requires_grad_(False)


def test_gradcheck(engine) -> None:
    needs_float64(engine)
    a, b = pairs(9, 5, torch.float64)
    scale = torch.tensor(3.0, dtype=torch.float64)
    inputs = tuple(x.requires_grad_() for x in (a, b, scale))
    assert torch.autograd.gradcheck(lambda a, b, s: clip_loss(a, b, logit_scale=s), inputs)


@pytest.mark.one_isa
def test_under_compile_and_autocast(engine) -> None:
    a, b = pairs(20, 8, torch.bfloat16)

    def step(a: Tensor, b: Tensor, s: Tensor) -> Tensor:
        with torch.autocast(engine.device.type, torch.bfloat16):
            return 3 * clip_loss(a, b.float(), logit_scale=s.exp())

    tensors = a, b, torch.tensor(2.0)
    got = results(torch.compile(step, fullgraph=True), *tensors)
    for x, y in zip(got, results(step, *tensors), strict=True):
        torch.testing.assert_close(x, y)
    torch.testing.assert_close(got[0], 3 * clip_loss(a.float(), b.float(), logit_scale=torch.tensor(2.0).exp()))


def test_shapes_alone_on_the_meta_device() -> None:
    a = torch.empty(4, 8, device="meta", requires_grad=True)
    loss = clip_loss(a, a, logit_scale=2.0)
    loss.backward()
    assert (loss.shape, loss.dtype, a.grad.shape) == ((), torch.float32, (4, 8))


def test_second_derivative_is_refused(engine) -> None:
    a, b = pairs(10, 4)
    (grad,) = torch.autograd.grad(clip_loss(a.requires_grad_(), b, logit_scale=2.0), a, create_graph=True)
    with pytest.raises(RuntimeError, match="second derivatives are not supported"):
        grad.sum().backward()


@linux_only
def test_the_logits_are_never_stored() -> None:
    """4096 x 4096 logits alone are 64 MB."""
    measure = functools.partial(
        extra_megabytes,
        "run = lambda n: ops.clip_loss(rows(n, 64), rows(n, 64), logit_scale=10.0, backend=backend).backward()",
        "run(64)",
        "run(4096)",
    )
    assert measure("cpu") < 16
    assert measure("reference") > 120  # the measurement does see stored logits


BAD = [
    *BAD_PAIRS,
    (dict(logit_scale=float("inf")), ValueError, "logit_scale must be finite; got inf"),
    (dict(logit_scale="2"), TypeError, "logit_scale must be a number or a tensor; got str"),
    (
        dict(logit_scale=torch.tensor(1.0, device="meta")),
        ValueError,
        "logit_scale must be on the CPU; got meta",
    ),
    (dict(logit_scale=torch.tensor(1)), TypeError, "logit_scale must be float32.*got torch.int64"),
    (dict(logit_scale=torch.ones(1)), ValueError, r"logit_scale must have shape \(\); got \(1\)"),
]


@pytest.mark.parametrize(("change", "error", "message"), BAD, ids=[m[:40] for *_, m in BAD])
def test_bad_input_is_named(change: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        clip_loss(**({"a": torch.zeros(8, 4), "b": torch.zeros(8, 4), "logit_scale": 10.0} | change))
