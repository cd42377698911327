"""InfoNCE against its formula in float64, on every engine."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from contrastive_helpers import (
    CANCELLING,
    DTYPES,
    TEMPERATURES,
    _tensors_are_made_on_the_engines_device,  # noqa: F401
    assert_any_layout,
    assert_as_good_as_plain_torch,
    assert_same_bits_with_any_number_of_threads,
    assert_wrong_gradients_are_refused,
    extra_megabytes,
    linux_only,
    needs_float64,
    needs_speed,
    results,
    rows,
    some,
)
from torch import Tensor

from fastssl.ops import info_nce
from fastssl.ops.info_nce import REDUCTIONS, reference  # type: ignore[attr-defined]

BACKENDS = ("reference", "cpu", "triton")
# queries, keys, negatives, features
SHAPES = [(1, 1, 0, 1), (2, 3, 1, 3), (7, 300, 0, 128), (97, 97, 96, 64), (123, 100, 507, 31), (252, 1009, 0, 20)]


def inputs(n: int, m: int, d: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    keys = rows(m, d, 1)
    return rows(n, d, 0, like=keys[torch.arange(n) % m]).to(dtype), keys.to(dtype)


def drawn(n: int, m: int) -> tuple[Tensor, Tensor | None]:
    """Targets in any order, some several times, and another column for each row to leave out, if there is one."""
    targets = torch.randint(m, (n,), generator=torch.Generator().manual_seed(3), device="cpu")
    targets = targets.to(torch.get_default_device())
    return targets, (targets + 1 + torch.arange(n) % (m - 1)) % m if m > 1 else None


def check(queries: Tensor, keys: Tensor, temperature: float, cancels: bool = False, **options: Any) -> None:
    """Of a temperature without gradient, which kernels take as it is, and in float32 of one with."""

    def of(function: Any, q: Tensor, k: Tensor, *t: Tensor) -> Tensor:
        negatives = options.get("negatives")
        given = options if negatives is None else options | {"negatives": negatives.to(k.dtype)}
        return function(q, k, **given, temperature=t[0] if t else temperature)

    ours, plain = functools.partial(of, info_nce), functools.partial(of, reference)
    sizes = dict(scale=1 / temperature, cancels=cancels)
    assert_as_good_as_plain_torch(ours, plain, queries, keys, **sizes)
    if queries.dtype == torch.float32:
        assert_as_good_as_plain_torch(ours, plain, queries, keys, torch.tensor(temperature), **sizes)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("n", "m", "k", "d"), SHAPES)
def test_equals_the_formula(engine, n: int, m: int, k: int, d: int, dtype: torch.dtype) -> None:
    needs_float64(engine, dtype)
    needs_speed(engine, n, m + k, d)
    queries, keys = inputs(n, m, d, dtype)
    targets, exclude = drawn(n, m)
    for i, temperature in some(engine, list(enumerate(TEMPERATURES))):
        check(
            queries,
            keys,
            temperature,
            targets=targets,
            exclude=exclude if i % 2 else None,
            negatives=rows(k, d, 2).to(dtype) if k or i % 2 else None,
            reduction=REDUCTIONS[i % 3],
        )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_wrong_gradient_is_refused(dtype: torch.dtype) -> None:
    for t in TEMPERATURES:
        assert_wrong_gradients_are_refused(globals(), "info_nce", lambda t=t: check(*inputs(20, 30, 16, dtype), t))


def test_targets_are_the_rows_own_numbers_by_default(engine) -> None:
    queries, keys = inputs(50, 120, 16)
    want = info_nce(queries, keys, torch.arange(50), temperature=0.1)
    assert torch.equal(info_nce(queries, keys, temperature=0.1), want)


def test_two_views_and_their_own_columns_excluded_are_nt_xent(engine) -> None:
    from fastssl.ops.nt_xent import reference as nt_xent

    z0, z1 = inputs(70, 70, 16)
    both, own = torch.cat([z0, z1]), torch.arange(140)
    got = info_nce(both, both, own.roll(70), exclude=own, temperature=0.1)
    torch.testing.assert_close(got, nt_xent(z0, z1, 0.1))


@pytest.mark.parametrize("case", ["duplicates", "all equal", "queries are keys", "zeros", "lengths apart"])
def test_degenerate_rows(engine, case: str) -> None:
    queries, keys = inputs(100, 300, 16)
    if case == "duplicates":
        queries[1::2], keys[1::2] = queries[::2], keys[::2]
    elif case == "all equal":
        queries, keys = queries[:1].repeat(100, 1), queries[:1].repeat(300, 1)
    elif case == "queries are keys":
        queries = keys[:100].clone()
    elif case == "zeros":
        queries, keys = torch.zeros_like(queries), torch.zeros_like(keys)
    else:
        queries, keys = queries * torch.logspace(-2, 1, 100)[:, None], keys * torch.logspace(1, -2, 300)[:, None]
    check(queries, keys, 0.1, cancels=case in CANCELLING)


@pytest.mark.parametrize("m", [1, 2])
def test_hardly_any_columns(engine, m: int) -> None:
    """One key alone is always right; so is one of two where the other is excluded."""
    queries, keys = inputs(5, m, 8)
    zero = torch.zeros(5, dtype=torch.int64)
    got = results(
        lambda q, k: info_nce(q, k, zero, exclude=zero + 1 if m > 1 else None, temperature=0.1), queries, keys
    )
    for x in got:
        assert x.eq(0).all()


def test_a_loss_near_zero_keeps_its_digits(engine) -> None:
    queries, keys = torch.eye(8), 2 * torch.eye(8) - 1
    got = results(functools.partial(info_nce, temperature=0.1), queries, keys)
    want = results(functools.partial(reference, temperature=0.1), queries.double(), keys.double())
    assert want[0] < 1e-7
    for a, b in zip(got, want, strict=True):
        if engine.backend == "cpu":
            torch.testing.assert_close(a.double(), b, rtol=1e-5, atol=0)


@pytest.mark.slow
def test_65536_by_65536_within_500_megabytes() -> None:
    """Rows drawn from eight vectors, so that sums over 2^32 pairs are sums over eight counts."""
    n = 65536
    setup = f"""
generator = torch.Generator().manual_seed(0)
codes = normalize(torch.randn(8, 64, generator=generator), dim=1)
code = torch.randint(8, ({n},), generator=generator)
def run(n):
    queries, keys = (codes[c[:n]].requires_grad_() for c in (code, code))
    loss = ops.info_nce(queries, keys, temperature=0.5, backend=backend)
    loss.backward()
    return loss.detach(), queries.grad, keys.grad
"""
    large = f"""
got = run({n})
codes = codes.double()
s, count = codes @ codes.T / 0.5, torch.bincount(code, minlength=8).double()
p = (s - (s.exp() * count).sum(1).log()[:, None]).exp()
want = -(p.diagonal().log() * count).sum() / {n}, ((p * count) @ codes - codes) / 0.5 / {n}, None
want = *want[:2], ((p * count[:, None]).T @ codes - codes) / 0.5 / {n}
assert abs(got[0] - want[0]) <= 1e-6 * want[0]
for x, y in zip(got[1:], want[1:]):
    assert (x[:999] - y[code[:999]]).norm() <= 1e-5 * y[code[:999]].norm()
"""
    assert extra_megabytes(setup, "run(64)", large, "cpu") < 500


@linux_only
def test_the_logits_are_never_stored() -> None:
    """4096 x 4096 logits alone are 64 MB."""
    measure = functools.partial(
        extra_megabytes,
        "run = lambda n: ops.info_nce(rows(n, 64), rows(n, 64), temperature=0.2, backend=backend).backward()",
        "run(64)",
        "run(4096)",
    )
    assert measure("cpu") < 16
    assert measure("reference") > 120  # the measurement does see stored logits


@pytest.mark.usefixtures("other_working_memory")
@pytest.mark.parametrize(("n", "m"), [(300, 97), (20, 3000), (3000, 20)])
def test_same_bits_again_and_with_any_number_of_threads(engine, n: int, m: int) -> None:
    needs_speed(engine, n, m + 500, 24)
    targets, exclude = drawn(n, m)
    options = dict(targets=targets, exclude=exclude, negatives=rows(500, 24, 2), temperature=0.1)
    work = functools.partial(results, functools.partial(info_nce, **options), *inputs(n, m, 24))
    assert_same_bits_with_any_number_of_threads(work, engine)


def test_non_contiguous_inputs(engine) -> None:
    queries, keys = inputs(60, 80, 24)
    targets, exclude = drawn(60, 80)
    options = dict(exclude=exclude, negatives=keys, temperature=0.3)
    want = info_nce(queries, keys, targets, **options)
    wide = torch.stack([targets, exclude], 1)
    options |= dict(exclude=wide[:, 1], negatives=keys.T.contiguous().T)
    loss = functools.partial(info_nce, targets=wide[:, 0], **options)
    exactly = engine.backend == "cpu"
    torch.testing.assert_close(loss(queries, keys), want, rtol=0 if exactly else 1e-6, atol=0)
    assert_any_layout(loss, queries, keys, exactly=exactly)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("where", [0, 1, 2])
def test_bad_values_give_nan(engine, value: float, where: int) -> None:
    tensors = [*inputs(120, 130, 8), rows(110, 8, 2)]
    tensors[where][100, 3] = value
    assert torch.isnan(info_nce(*tensors[:2], negatives=tensors[2], temperature=0.5))


def test_gradient_only_where_asked(engine) -> None:
    queries, keys, negatives = *inputs(10, 20, 4), rows(30, 4, 2)
    temperature = torch.tensor(0.5)
    tensors = (queries, keys, temperature)
    for asked in tensors:
        asked.requires_grad_()
        info_nce(queries, keys, negatives=negatives.requires_grad_(), temperature=temperature).backward()
        assert asked.grad is not None
        assert all(x.grad is None for x in (*tensors, negatives) if x is not asked)
        asked.grad = None
        asked.requires_grad_(False)
    with torch.no_grad():
        assert not info_nce(queries.requires_grad_(), keys, temperature=0.5).requires_grad


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_gradcheck(engine, reduction: str) -> None:
    needs_float64(engine)
    queries, keys = (x.requires_grad_() for x in inputs(9, 12, 5, torch.float64))
    targets, exclude = drawn(9, 12)
    temperature = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    options = dict(targets=targets, exclude=exclude, negatives=rows(5, 5, 2).double(), reduction=reduction)
    assert torch.autograd.gradcheck(
        lambda q, k, t: info_nce(q, k, temperature=t, **options), (queries, keys, temperature)
    )


@pytest.mark.one_isa
def test_under_compile_and_autocast(engine) -> None:
    queries, keys = inputs(20, 50, 8, torch.bfloat16)
    targets, exclude = drawn(20, 50)

    def step(q: Tensor, k: Tensor, t: Tensor) -> Tensor:
        with torch.autocast(engine.device.type, torch.bfloat16):
            return info_nce(q, k.float(), targets, exclude=exclude, negatives=k, temperature=t)

    tensors = queries, keys, torch.tensor(0.5)
    got = results(torch.compile(step, fullgraph=True), *tensors)
    for a, b in zip(got, results(step, *tensors), strict=True):
        torch.testing.assert_close(a, b)
    options = dict(targets=targets, exclude=exclude, negatives=keys, temperature=0.5)
    torch.testing.assert_close(got[0], info_nce(queries.float(), keys.float(), **options))


def test_shapes_alone_on_the_meta_device() -> None:
    queries = torch.empty(4, 8, device="meta", requires_grad=True)
    loss = info_nce(queries, torch.empty(9, 8, device="meta"), temperature=0.5, reduction="none")
    loss.sum().backward()
    assert (loss.shape, loss.dtype, queries.grad.shape) == ((4,), torch.float32, (4, 8))


def test_second_derivative_is_refused(engine) -> None:
    queries, keys = inputs(10, 20, 4)
    loss = info_nce(queries.requires_grad_(), keys, temperature=0.5)
    (grad,) = torch.autograd.grad(loss, queries, create_graph=True)
    with pytest.raises(RuntimeError, match="second derivatives are not supported"):
        grad.sum().backward()


def columns(*values: int) -> Tensor:
    return torch.tensor([*values] + [5] * (8 - len(values)))


BAD = [
    (
        dict(keys=torch.zeros(9, 3)),
        ValueError,
        r"queries \(N, D\) and keys \(M, D\) must agree on D; got \(8, 4\) and \(9, 3\)",
    ),
    (
        dict(negatives=torch.zeros(9, 3)),
        ValueError,
        r"and negatives \(K, D\) must agree on D; got \(8, 4\) and \(9, 3\)",
    ),
    (dict(queries=torch.zeros(8)), ValueError, r"queries must have shape \(N, D\); got \(8\)"),
    (dict(queries=torch.zeros(0, 4)), ValueError, r"one query, key and feature; got \(0, 4\) and \(9, 4\)"),
    (dict(keys=torch.zeros(0, 4)), ValueError, r"one query, key and feature; got \(8, 4\) and \(0, 4\)"),
    (dict(keys=torch.zeros(7, 4)), ValueError, "needs targets where queries are more than keys; got 8 and 7"),
    (dict(keys=torch.zeros(9, 4).double()), TypeError, "one dtype; got torch.float32 and torch.float64"),
    (dict(negatives=torch.zeros(8, 4).long()), TypeError, "negatives must be float32.*got torch.int64"),
    (dict(targets=columns(9)), ValueError, r"targets must be in \[0, 9\); got 9"),
    (dict(targets=columns(-1)), ValueError, r"targets must be in \[0, 9\); got -1"),
    (dict(exclude=columns(1, -100)), ValueError, r"exclude must be in \[0, 9\); got -100"),
    (
        dict(exclude=columns(1, 2, 2)),
        ValueError,
        "must not name a row's target; row 2 has target and excluded column 2",
    ),
    (dict(targets=columns(), exclude=columns(1)), ValueError, "row 1 has target and excluded column 5"),
    (dict(targets=columns().int()), TypeError, "targets must be int64; got torch.int32"),
    (dict(targets=columns()[:7]), ValueError, r"targets must have shape \(8\); got \(7\)"),
    (dict(exclude=[1] * 8), TypeError, "exclude must be a tensor; got list"),
    (dict(targets=columns().to("meta")), ValueError, "targets must be on cpu; got meta"),
    (dict(reduction="max"), ValueError, "reduction must be one of mean, sum, none; got 'max'"),
    (dict(temperature=0.0), ValueError, "temperature must be finite and above 0; got 0.0"),
    (dict(temperature=float("inf")), ValueError, "got inf"),
    (
        dict(temperature=torch.tensor(1.0, device="meta")),
        ValueError,
        "temperature must be on the CPU; got meta",
    ),
    (dict(queries=torch.zeros(8, 0), keys=torch.zeros(9, 0)), ValueError, r"one query, key and feature; got \(8, 0\)"),
    (dict(keys=torch.zeros(9)), ValueError, r"keys must have shape \(M, D\); got \(9\)"),
    (dict(negatives=torch.zeros(9)), ValueError, r"negatives must have shape \(K, D\); got \(9\)"),
    (dict(queries=[1.0]), TypeError, "queries must be a tensor; got list"),
    (
        dict(keys=torch.zeros(9, 4, device="meta")),
        ValueError,
        "queries and keys must be on one device; got cpu and meta",
    ),
    (dict(negatives=torch.zeros(9, 4, device="meta")), ValueError, "queries and negatives must be on one device"),
    (dict(exclude=columns(1, 9)), ValueError, r"exclude must be in \[0, 9\); got 9"),
    (dict(exclude=columns().int()), TypeError, "exclude must be int64; got torch.int32"),
    (dict(exclude=columns()[:7]), ValueError, r"exclude must have shape \(8\); got \(7\)"),
    (dict(exclude=columns().to("meta")), ValueError, "exclude must be on cpu; got meta"),
    (dict(reduction=None), ValueError, "reduction must be one of mean, sum, none; got None"),
    (dict(temperature="0.5"), TypeError, "temperature must be a number; got str"),
    (dict(temperature=torch.ones(1)), ValueError, r"temperature must have shape \(\); got \(1\)"),
    (dict(temperature=torch.tensor(1)), TypeError, "temperature must be float32.*got torch.int64"),
    (dict(backend="cuda"), RuntimeError, "no such backend, only triton, cpu, reference"),
]


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize(("change", "error", "message"), BAD, ids=[m[:40] for *_, m in BAD])
def test_bad_input_is_named(change: dict[str, Any], error: type[Exception], message: str, backend: str) -> None:
    arguments = {"queries": torch.zeros(8, 4), "keys": torch.zeros(9, 4), "temperature": 0.5, "backend": backend}
    with pytest.raises(error, match=message):
        info_nce(**(arguments | change))
