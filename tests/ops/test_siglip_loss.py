"""SigLIP's loss against its formula in float64, on every engine."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from beyond_32_bits import DEVICES, coded, how_many
from contrastive_helpers import (
    BAD_PAIRS,
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

from fastssl.ops import siglip_loss
from fastssl.ops.siglip_loss import reference  # type: ignore[attr-defined]

BACKENDS = ("reference", "cpu", "triton")
SHAPES = [(1, 1), (2, 3), (7, 128), (48, 5), (96, 16), (97, 64), (123, 100), (252, 512), (507, 31)]
SCALES = [
    (1.0, 0.0),
    (10.0, -10.0),
    (5.0, 1.0),
    (117.0, -13.0),
    (50.0, -10.0),
    (-3.0, 2.0),
    (1 / 0.07, -9.0),
]  # and biases


def check(a: Tensor, b: Tensor, scale: float, bias: float, cancels: bool = False) -> None:
    """Of a scale and a bias without gradient, which kernels take as they are, and in float32 of those with."""
    ours, plain = (lambda a, b, f=f: f(a, b, logit_scale=scale, logit_bias=bias) for f in (siglip_loss, reference))
    largest = abs(scale) + abs(bias)
    assert_as_good_as_plain_torch(ours, plain, a, b, scale=largest, cancels=cancels)
    if a.dtype == torch.float32:
        ours, plain = (lambda a, b, s, c, f=f: f(a, b, logit_scale=s, logit_bias=c) for f in (siglip_loss, reference))
        tensors = a, b, torch.tensor(scale), torch.tensor(bias)
        assert_as_good_as_plain_torch(ours, plain, *tensors, scale=largest, cancels=cancels)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("n", "d"), SHAPES)
def test_equals_the_formula(engine, n: int, d: int, dtype: torch.dtype) -> None:
    needs_float64(engine, dtype)
    needs_speed(engine, n, n, d)
    for scale, bias in some(engine, SCALES):
        check(*pairs(n, d, dtype), scale, bias, cancels=n == 1)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_wrong_gradient_is_refused(dtype: torch.dtype) -> None:
    for logits in SCALES:
        assert_wrong_gradients_are_refused(globals(), "siglip_loss", lambda s=logits: check(*pairs(20, 16, dtype), *s))


@pytest.mark.parametrize("case", degenerate_pairs())
def test_degenerate_rows(engine, case: str) -> None:
    check(*degenerate_pairs()[case], 10.0, -10.0)


def test_small_and_large_logits_keep_their_digits(engine) -> None:
    """log(1 + exp(x)) of x from -80, where 1 + exp(x) rounds to 1, to 80, where exp(x) squared is infinite."""
    a, b = torch.linspace(-80, 80, 321)[:, None], torch.ones(321, 1)
    want = results(functools.partial(reference, logit_scale=1.0, logit_bias=0.0), a.double(), b.double())
    got = results(functools.partial(siglip_loss, logit_scale=1.0, logit_bias=0.0), a, b)
    torch.testing.assert_close(got[0].double(), want[0], rtol=1e-6, atol=0)
    for x, y in zip(got[1:], want[1:], strict=True):
        torch.testing.assert_close(x.double(), y, rtol=1e-5, atol=1e-6)
    for x in (-80.0, -40.0, -20.0, -10.0, -1.0, 1.0, 30.0):  # one negative logit, twice
        logits = torch.tensor([[0.0], [1.0]])
        loss = siglip_loss(logits, x * logits.flip(0), logit_scale=1.0, logit_bias=0.0)
        exact = reference(logits.double(), x * logits.flip(0).double(), 1.0, 0.0)
        torch.testing.assert_close(loss.double(), exact, rtol=2e-6, atol=0)
    a, b = -torch.eye(2).flip(0), torch.eye(2)
    for scale in (20.0, 40.0, 80.0):  # positives at 0 moved out of the way by the bias
        exact = reference(b.double() * 2, b.double(), scale, -scale)
        torch.testing.assert_close(
            siglip_loss(b * 2, b, logit_scale=scale, logit_bias=-scale).double(), exact, rtol=1e-5, atol=0
        )


@pytest.mark.parametrize("device", DEVICES)
def test_more_pairs_than_32_bits_count(device: str) -> None:
    codes, (of_a, of_b) = coded(46_400, 46_400)  # squared, over 2^31
    n, a, b = 46_400, *(codes.float()[code].to(device) for code in (of_a, of_b))
    loss, grad_a, grad_b, slope = results(
        lambda a, b, bias: siglip_loss(a, b, logit_scale=3.0, logit_bias=bias), a, b, torch.tensor(-2.0, device=device)
    )

    logits, own, pairs = 3 * codes @ codes.T - 2, (of_a, of_b), how_many(of_a)[:, None] * how_many(of_b)
    want = (torch.nn.functional.softplus(logits) * pairs).sum() / n - logits[own].mean()
    torch.testing.assert_close(loss.item(), want.item(), rtol=1e-6, atol=0)
    weights = logits.sigmoid()
    torch.testing.assert_close(slope.item(), (weights * pairs).sum().item() / n - 1, rtol=1e-5, atol=0)
    want_a = ((weights * how_many(of_b)) @ codes)[of_a] - codes[of_b]
    want_b = ((weights.T * how_many(of_a)) @ codes)[of_b] - codes[of_a]
    for got, expected in ((grad_a, want_a), (grad_b, want_b)):
        got = got.cpu().double() * (n / 3)
        assert (got - expected).norm() <= 1e-5 * expected.norm()


@pytest.mark.usefixtures("other_working_memory")
def test_same_bits_again_and_with_any_number_of_threads(engine) -> None:
    needs_speed(engine, 500, 500, 48)
    work = functools.partial(
        results, functools.partial(siglip_loss, logit_scale=10.0, logit_bias=-10.0), *pairs(500, 48)
    )
    assert_same_bits_with_any_number_of_threads(work, engine)


def test_non_contiguous_inputs(engine) -> None:
    loss = functools.partial(siglip_loss, logit_scale=3.0, logit_bias=-1.0)
    assert_any_layout(loss, *pairs(60, 24), exactly=engine.backend == "cpu")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("where", [0, 1])
def test_bad_values_are_not_hidden(engine, value: float, where: int) -> None:
    tensors = pairs(120, 8)
    tensors[where][100, 3] = value
    assert not torch.isfinite(siglip_loss(*tensors, logit_scale=2.0, logit_bias=-1.0))


def test_gradient_only_where_asked(engine) -> None:
    tensors = *pairs(10, 4), torch.tensor(2.0), torch.tensor(-1.0)
    for asked in tensors:
        asked.requires_grad_()
        a, b, scale, bias = tensors
        siglip_loss(a, b, logit_scale=scale, logit_bias=bias).backward()
        assert asked.grad is not None
        assert all(x.grad is None for x in tensors if x is not asked)
        asked.grad = None
        asked.requires_grad_(False)


def test_gradcheck(engine) -> None:
    needs_float64(engine)
    a, b = pairs(9, 5, torch.float64)
    scale, bias = (torch.tensor(x, dtype=torch.float64) for x in (3.0, -2.0))
    inputs = tuple(x.requires_grad_() for x in (a, b, scale, bias))
    assert torch.autograd.gradcheck(lambda a, b, s, c: siglip_loss(a, b, logit_scale=s, logit_bias=c), inputs)


@pytest.mark.one_isa
def test_under_compile_and_autocast(engine) -> None:
    a, b = pairs(20, 8, torch.bfloat16)

    def step(a: Tensor, b: Tensor, s: Tensor, c: Tensor) -> Tensor:
        with torch.autocast(engine.device.type, torch.bfloat16):
            return 3 * siglip_loss(a, b.float(), logit_scale=s.exp(), logit_bias=c)

    tensors = a, b, torch.tensor(2.0), torch.tensor(-10.0)
    got = results(torch.compile(step, fullgraph=True), *tensors)
    for x, y in zip(got, results(step, *tensors), strict=True):
        torch.testing.assert_close(x, y)
    torch.testing.assert_close(got[0], step(a.float(), b, *tensors[2:]))


def test_shapes_alone_on_the_meta_device() -> None:
    a = torch.empty(4, 8, device="meta", requires_grad=True)
    loss = siglip_loss(a, a, logit_scale=2.0, logit_bias=-1.0)
    loss.backward()
    assert (loss.shape, loss.dtype, a.grad.shape) == ((), torch.float32, (4, 8))


def test_second_derivative_is_refused(engine) -> None:
    a, b = pairs(10, 4)
    (grad,) = torch.autograd.grad(
        siglip_loss(a.requires_grad_(), b, logit_scale=2.0, logit_bias=0.0), a, create_graph=True
    )
    with pytest.raises(RuntimeError, match="second derivatives are not supported"):
        grad.sum().backward()


@linux_only
def test_the_logits_are_never_stored() -> None:
    """4096 x 4096 logits alone are 64 MB."""
    measure = functools.partial(
        extra_megabytes,
        "run = lambda n: "
        "ops.siglip_loss(rows(n, 64), rows(n, 64), logit_scale=10.0, logit_bias=-10.0, backend=backend).backward()",
        "run(64)",
        "run(4096)",
    )
    assert measure("cpu") < 24  # rows in parts, in three orders
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
    (dict(logit_bias=float("nan")), ValueError, "logit_bias must be finite; got nan"),
    (
        dict(logit_bias=torch.tensor(1.0, device="meta")),
        ValueError,
        "logit_bias must be on the CPU; got meta",
    ),
    (dict(logit_bias=torch.ones(1)), ValueError, r"logit_bias must have shape \(\); got \(1\)"),
    (dict(logit_bias=torch.tensor(1)), TypeError, "logit_bias must be float32.*got torch.int64"),
    (dict(logit_bias=None), TypeError, "logit_bias must be a number or a tensor; got NoneType"),
]


@pytest.mark.parametrize(("change", "error", "message"), BAD, ids=[m[:40] for *_, m in BAD])
def test_bad_input_is_named(change: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        siglip_loss(
            **({"a": torch.zeros(8, 4), "b": torch.zeros(8, 4), "logit_scale": 10.0, "logit_bias": -10.0} | change)
        )
