"""InfoNCE against a queue, against its formula in float64, on every engine."""

from __future__ import annotations

import functools
import threading
from pathlib import Path

import pytest
import torch
from beyond_32_bits import DEVICES, coded, how_many
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

from fastssl.ops import _native, queue_info_nce
from fastssl.ops.queue_info_nce import reference  # type: ignore[attr-defined]

BACKENDS = ("reference", "cpu", "triton")
SHAPES = [
    (1, 1, 1),
    (2, 3, 3),
    (7, 0, 128),
    (48, 96, 5),
    (97, 1009, 64),
    (123, 507, 100),
    (252, 4096, 128),
    (5, 9001, 31),
]


def inputs(n: int, k: int, d: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    query = rows(n, d, 0)
    key, queue = rows(n, d, 1, like=query), rows(k, d, 2)
    return query.to(dtype), key.to(dtype), queue.to(dtype)


def check(query: Tensor, key: Tensor, queue: Tensor, temperature: float, cancels: bool = False) -> None:
    options = dict(temperature=temperature)
    assert_as_good_as_plain_torch(
        lambda q, k: queue_info_nce(q, k, queue.to(q.dtype), **options),
        lambda q, k: reference(q, k, queue.to(q.dtype), **options),
        query,
        key,
        scale=1 / temperature,
        cancels=cancels,
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("n", "k", "d"), SHAPES)
def test_equals_the_formula(engine, n: int, k: int, d: int, dtype: torch.dtype) -> None:
    needs_float64(engine, dtype)
    needs_speed(engine, n, k, d)
    for temperature in some(engine, TEMPERATURES):
        check(*inputs(n, k, d, dtype), temperature)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_wrong_gradient_is_refused(dtype: torch.dtype) -> None:
    for t in TEMPERATURES:
        assert_wrong_gradients_are_refused(
            globals(), "queue_info_nce", lambda t=t: check(*inputs(20, 50, 16, dtype), t)
        )


@pytest.mark.parametrize("case", ["duplicates", "all equal", "the positive in the queue", "zeros", "lengths apart"])
def test_degenerate_rows(engine, case: str) -> None:
    query, key, queue = inputs(100, 300, 16)
    if case == "duplicates":
        query[1::2], key[1::2], queue[1::2] = query[::2], key[::2], queue[::2]
    elif case == "all equal":
        query, key, queue = (query[:1].repeat(len(x), 1) for x in (query, key, queue))
    elif case == "the positive in the queue":
        queue[50:150] = key
    elif case == "zeros":
        query, key, queue = (torch.zeros_like(x) for x in (query, key, queue))
    else:
        query, queue = query * torch.logspace(-2, 1, 100)[:, None], queue * torch.logspace(1, -2, 300)[:, None]
    check(query, key, queue, 0.1, cancels=case in CANCELLING)


def test_a_loss_near_zero_keeps_its_digits(engine) -> None:
    """P(positive) rounds to 1 in float32: only a formula that never subtracts it from 1 has a gradient left."""
    query, key, queue = (torch.eye(8), torch.eye(8), -torch.eye(8))
    loss, grad_query, grad_key = results(functools.partial(queue_info_nce, queue=queue, temperature=0.05), query, key)
    exact = results(functools.partial(reference, queue=queue.double(), temperature=0.05), query.double(), key.double())
    assert exact[0] < 1e-7
    for got, want in zip((loss, grad_query, grad_key), exact, strict=True):
        if engine.backend == "cpu":
            torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=0)


def test_rising_maxima(engine) -> None:
    """Each part of the queue outdoes the one before, so every tile rescales what was summed."""
    query, key, queue = inputs(10, 3000, 8)
    queue = query.sum(0) * torch.linspace(-1, 1, 3000)[:, None] + 0.1 * queue
    check(query, key, queue, 0.05)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_queue_of_its_own_dtype(engine, dtype: torch.dtype) -> None:
    query, key, queue = inputs(60, 200, 40)
    queue = queue.to(dtype)
    got = queue_info_nce(query, key, queue, temperature=0.2)
    torch.testing.assert_close(got, queue_info_nce(query, key, queue.float(), temperature=0.2))


@pytest.mark.parametrize("device", DEVICES)
def test_more_pairs_than_32_bits_count(device: str) -> None:
    codes, (of_query, of_key, of_queue) = coded(2_100, 2_100, 2**20)  # 2,100 x 2^20 > 2^31
    query, key, queue = (codes.float()[code].to(device) for code in (of_query, of_key, of_queue))
    loss, *grads = results(functools.partial(queue_info_nce, queue=queue, temperature=0.5), query, key)

    logits = codes @ codes.T / 0.5
    weights = logits.exp() * how_many(of_queue)
    others, positive = weights.sum(1)[of_query], logits[of_query, of_key]
    total = others + positive.exp()
    torch.testing.assert_close(loss.item(), (total.log() - positive).mean().item(), rtol=1e-6, atol=0)
    want_query = (weights @ codes)[of_query] / total[:, None] - (others / total)[:, None] * codes[of_key]
    want_key = -(others / total)[:, None] * codes[of_query]
    for got, expected in zip(grads, (want_query, want_key), strict=True):
        got = got.cpu().double() * (0.5 * len(query))
        assert (got - expected).norm() <= 1e-5 * expected.norm()


@pytest.mark.usefixtures("other_working_memory")
def test_same_bits_again_and_with_any_number_of_threads(engine) -> None:
    needs_speed(engine, 200, 5000, 48)
    query, key, queue = inputs(200, 5000, 48)
    work = functools.partial(results, functools.partial(queue_info_nce, queue=queue, temperature=0.1), query, key)
    assert_same_bits_with_any_number_of_threads(work, engine)


def test_non_contiguous_inputs(engine) -> None:
    query, key, queue = inputs(60, 100, 24)
    wide = torch.zeros(100, 48)
    wide[:, ::2] = queue
    loss, exactly = functools.partial(queue_info_nce, temperature=0.3), engine.backend == "cpu"
    assert_any_layout(lambda q, k: loss(q, k, wide[:, ::2]), query, key, exactly=exactly)
    got, want = loss(query, key, wide[:, ::2]), loss(query, key, queue)
    torch.testing.assert_close(got, want, rtol=0 if exactly else 1e-6, atol=0)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("where", [0, 1, 2])
def test_bad_values_give_nan(engine, value: float, where: int) -> None:
    tensors = inputs(120, 130, 8)
    tensors[where][100, 3] = value
    loss = queue_info_nce(*tensors, temperature=0.5)
    assert torch.isnan(loss) if engine.backend == "cpu" else not torch.isfinite(loss)


def running_threads() -> int:
    return len(list(Path("/proc/self/task").iterdir()))


@linux_only
def test_an_empty_queue_wakes_no_threads() -> None:
    """None for no work would be as many as OpenMP likes: here, of a thread that never asked for any, three."""
    before, woken = torch.get_num_threads(), []

    def work() -> None:
        torch.set_num_threads(3)
        with _native.on_one_thread():
            running = running_threads()
            queue_info_nce(*inputs(7, 0, 8), temperature=0.5, backend="cpu")
            woken.append(running_threads() - running)

    caller = threading.Thread(target=work)
    caller.start()
    caller.join()
    torch.set_num_threads(before)
    assert woken == [0]


def test_gradient_only_where_asked(engine) -> None:
    query, key, queue = inputs(10, 20, 4)
    for asked in (query, key):
        asked.requires_grad_()
        queue_info_nce(query, key, queue.requires_grad_(), temperature=0.5).backward()
        others = [x for x in (query, key, queue) if x is not asked]
        assert asked.grad is not None
        assert all(x.grad is None for x in others)
        asked.grad = None
        asked.requires_grad_(False)
    with torch.no_grad():
        assert not queue_info_nce(query.requires_grad_(), key, queue, temperature=0.5).requires_grad


def test_gradient_is_scaled_by_what_comes_from_above(engine) -> None:
    query, key, queue = inputs(40, 60, 8)
    plain = results(lambda q, k: queue_info_nce(q, k, queue, temperature=0.5), query, key)
    scaled = results(lambda q, k: 3 * queue_info_nce(q, k, queue, temperature=0.5), query, key)
    for once, thrice in zip(plain, scaled, strict=True):
        torch.testing.assert_close(thrice, 3 * once)


def test_gradcheck(engine) -> None:
    needs_float64(engine)
    query, key, queue = inputs(9, 20, 5, torch.float64)
    query.requires_grad_(), key.requires_grad_()
    assert torch.autograd.gradcheck(lambda q, k: queue_info_nce(q, k, queue, temperature=0.3), (query, key))


@pytest.mark.one_isa
def test_under_compile_and_autocast(engine) -> None:
    query, key, queue = inputs(20, 50, 8, torch.bfloat16)

    def step(q: Tensor, k: Tensor) -> Tensor:
        with torch.autocast(engine.device.type, torch.bfloat16):
            return queue_info_nce(q, k.float(), queue, temperature=0.5)

    got = results(torch.compile(step, fullgraph=True), query, key)
    for a, b in zip(got, results(step, query, key), strict=True):
        torch.testing.assert_close(a, b)
    assert torch.equal(got[0], queue_info_nce(query.float(), key.float(), queue, temperature=0.5))


def test_shapes_alone_on_the_meta_device() -> None:
    query = torch.empty(4, 8, device="meta", requires_grad=True)
    loss = queue_info_nce(query, query, torch.empty(9, 8, device="meta"), temperature=0.5)
    loss.backward()
    assert (loss.shape, loss.dtype, query.grad.shape) == ((), torch.float32, (4, 8))


def test_second_derivative_is_refused(engine) -> None:
    query, key, queue = inputs(10, 20, 4)
    loss = queue_info_nce(query.requires_grad_(), key, queue, temperature=0.5)
    (grad,) = torch.autograd.grad(loss, query, create_graph=True)
    with pytest.raises(RuntimeError, match="second derivatives are not supported"):
        grad.sum().backward()


@linux_only
def test_the_logits_are_never_stored() -> None:
    """256 x 65536 logits alone are 64 MB."""
    measure = functools.partial(
        extra_megabytes,
        "queue = rows(65536, 32).detach()\nrun = lambda q, u: "
        "ops.queue_info_nce(q, q.detach(), u, temperature=0.2, backend=backend).backward()",
        "run(rows(256, 32), queue[:64])",
        "run(rows(256, 32), queue)",
    )
    assert measure("cpu") < 16
    assert measure("reference") > 120  # the measurement does see stored logits


BAD = [
    (dict(key=torch.zeros(8, 3)), ValueError, r"same shape \(N, D\); got \(8, 4\) and \(8, 3\)"),
    (
        dict(queue=torch.zeros(8, 3)),
        ValueError,
        r"query \(N, D\) and queue \(K, D\) must agree on D; got \(8, 4\) and \(8, 3\)",
    ),
    (dict(query=torch.zeros(8)), ValueError, r"query must have shape \(N, D\); got \(8\)"),
    (dict(queue=torch.zeros(8)), ValueError, r"queue must have shape \(K, D\); got \(8\)"),
    (dict(query=torch.zeros(0, 4), key=torch.zeros(0, 4)), ValueError, r"one query and one feature; got \(0, 4\)"),
    (dict(key=torch.zeros(8, 4).double()), TypeError, "one dtype; got torch.float32 and torch.float64"),
    (dict(queue=torch.zeros(8, 4).long()), TypeError, "queue must be float32.*got torch.int64"),
    (dict(query=[1.0]), TypeError, "query must be a tensor; got list"),
    (dict(key=torch.zeros(8, 4, device="meta")), ValueError, "one device; got cpu and meta"),
    (
        dict(queue=torch.zeros(9, 4, device="meta")),
        ValueError,
        "query and queue must be on one device; got cpu and meta",
    ),
    (dict(temperature=0.0), ValueError, "temperature must be finite and above 0; got 0.0"),
    (dict(temperature=float("nan")), ValueError, "got nan"),
    (dict(temperature=torch.tensor(0.5)), TypeError, "temperature must be a number; got Tensor"),
    (dict(query=torch.zeros(8, 0), key=torch.zeros(8, 0), queue=torch.zeros(9, 0)), ValueError, r"got \(8, 0\)"),
    (dict(key=None), TypeError, "key must be a tensor; got NoneType"),
    (dict(queue=[1.0]), TypeError, "queue must be a tensor; got list"),
    (dict(temperature="0.5"), TypeError, "temperature must be a number; got str"),
    (dict(backend="cuda"), RuntimeError, "no such backend, only triton, cpu, reference"),
]


@pytest.mark.parametrize(("change", "error", "message"), BAD, ids=[m[:40] for *_, m in BAD])
def test_bad_input_is_named(change: dict[str, object], error: type[Exception], message: str) -> None:
    arguments: dict[str, object] = {
        "query": torch.zeros(8, 4),
        "key": torch.zeros(8, 4),
        "queue": torch.zeros(9, 4),
        "temperature": 0.5,
        **change,
    }
    with pytest.raises(error, match=message):
        queue_info_nce(**arguments)  # type: ignore[arg-type]
