"""The circular queue against writes one by one, on every engine."""

from __future__ import annotations

import pytest
import torch
from beyond_32_bits import zeros
from torch import Tensor
from torch.nn.functional import normalize

from fastssl.ops import enqueue_, explain

BACKENDS = ("reference", "cpu", "cuda")
pytestmark = pytest.mark.usefixtures("made_on_the_engine")
FLOATS = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
# rows, columns, keys, cursor
CASES = [
    (8, 5, 3, 0),
    (8, 5, 3, 6),  # wraps
    (8, 5, 8, 3),  # all of it
    (8, 5, 21, 5),  # the last 8 stay
    (1, 1, 1, 0),
    (1, 7, 4, 0),
    (8, 5, 0, 3),
    (507, 123, 252, 400),
    (700, 515, 300, 699),  # enough for several threads
    (8, 5, 3, 8),  # a cursor that stood in a longer queue
    (8, 5, 3, 2**62 + 7),
    (8, 5, 3, -2),
]


def random(rows: int, columns: int, dtype: torch.dtype, seed: int) -> Tensor:
    drawn = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed), device="cpu")
    return drawn.to(torch.get_default_device(), dtype)


def one_by_one(queue: Tensor, cursor: int, keys: Tensor) -> tuple[Tensor, int]:
    queue = queue.clone()
    for key in keys:
        queue[cursor % len(queue)] = key.to(queue.dtype)
        cursor += 1
    return queue, cursor % len(queue)


@pytest.mark.parametrize("keys_dtype", FLOATS, ids=str)
@pytest.mark.parametrize("queue_dtype", FLOATS, ids=str)
@pytest.mark.parametrize(("rows", "columns", "count", "start"), CASES)
def test_equals_writes_one_by_one(
    engine, rows: int, columns: int, count: int, start: int, queue_dtype: torch.dtype, keys_dtype: torch.dtype
) -> None:
    queue, keys = random(rows, columns, queue_dtype, 0), random(count, columns, keys_dtype, 1)
    cursor = torch.tensor(start)
    want, end = one_by_one(queue, start, keys)
    assert enqueue_(queue, cursor, keys) is None
    assert torch.equal(queue, want)
    assert cursor.item() == end


@pytest.mark.parametrize("keys_dtype", FLOATS, ids=str)
@pytest.mark.parametrize("queue_dtype", FLOATS, ids=str)
@pytest.mark.parametrize(("rows", "columns", "count"), [(64, 128, 40), (9, 1, 4), (50, 507, 70), (20, 1031, 20)])
def test_normalizes_before_the_cast(
    engine, rows: int, columns: int, count: int, queue_dtype: torch.dtype, keys_dtype: torch.dtype
) -> None:
    queue, keys = random(rows, columns, queue_dtype, 0), 3 * random(count, columns, keys_dtype, 1)
    want, _ = one_by_one(queue.double(), 5, normalize(keys.double(), dim=1))
    plain = normalize(keys.to(torch.float64 if keys_dtype == torch.float64 else torch.float32), dim=1)
    rival, _ = one_by_one(queue, 5, plain)
    enqueue_(queue, torch.tensor([5]), keys, normalize=True)
    error, rival_error = ((x.double() - want).abs().max().item() for x in (queue, rival))
    assert error <= 2 * rival_error + torch.finfo(plain.dtype).eps


def test_degenerate_keys_normalize_as_in_torch(engine) -> None:
    keys = random(6, 40, torch.float32, 0)
    keys[0] = 0
    keys[1] = 1e-14
    keys[2, 39] = float("nan")
    keys[3, 7] = float("inf")
    keys[4, 7] = float("-inf")
    queue = torch.zeros(6, 40)
    enqueue_(queue, torch.tensor(0), keys, normalize=True)
    torch.testing.assert_close(queue, normalize(keys, dim=1), equal_nan=True, rtol=1e-6, atol=0)
    assert queue[2].isnan().all()


def test_bad_values_are_written_as_they_are(engine) -> None:
    keys = random(3, 40, torch.float32, 0)
    keys[0, 39], keys[1, 7], keys[2, 0] = float("nan"), float("inf"), float("-inf")
    queue = torch.zeros(6, 40, dtype=torch.bfloat16)
    enqueue_(queue, torch.tensor(4), keys)
    torch.testing.assert_close(torch.cat([queue[4:], queue[:1]]), keys.bfloat16(), equal_nan=True, rtol=0, atol=0)
    assert queue[1:4].eq(0).all()


def test_a_queue_fills_and_turns_over(engine) -> None:
    """MoCo's loop: after any number of steps the queue holds the newest keys."""
    queue, cursor = torch.zeros(10, 2), torch.zeros(1, dtype=torch.int64)
    keys = torch.arange(1.0, 78.0)[:, None].expand(-1, 2)
    for step in keys.split(7):
        enqueue_(queue, cursor, step)
    assert cursor.item() == 77 % 10
    assert torch.equal(queue[:, 0].sort().values, torch.arange(68.0, 78.0))


def test_more_elements_than_32_bits_count(engine) -> None:
    queue = zeros(2**20 + 3, 2_100, dtype=torch.float16, device=engine.device)
    keys, cursor = random(4, 2_100, torch.float16, 1), torch.tensor(len(queue) - 2)
    enqueue_(queue, cursor, keys)
    assert torch.equal(queue[-2:], keys[:2])
    assert torch.equal(queue[:2], keys[2:])
    assert queue[2].eq(0).all()
    assert queue[-3].eq(0).all()
    assert cursor.item() == 2


def test_only_its_rows_are_written(engine) -> None:
    memory = torch.full((12, 8), -7.0)
    queue = memory[2:10, 3:6]
    if engine.backend == "cpu":
        assert "cpu" in explain(enqueue_, queue, torch.tensor(0), torch.ones(3, 3))
    enqueue_(queue, torch.tensor(7), torch.ones(2, 3))
    want = torch.full((12, 8), -7.0)
    want[9, 3:6], want[2, 3:6] = 1.0, 1.0
    assert torch.equal(memory, want)


def test_keys_with_gaps(engine) -> None:
    queue, keys = torch.zeros(9, 4), random(4, 5, torch.float32, 0).T[:, ::1]
    enqueue_(queue, torch.tensor(2), keys)
    assert torch.equal(queue[2:7], keys)


def test_a_queue_of_columns_is_served_by_the_reference() -> None:
    """MoCo's own queue is (D, K): its transpose has gaps in its rows."""
    queue = torch.zeros(3, 8).T
    told = explain(enqueue_, queue, torch.tensor(0), torch.ones(2, 3))
    assert told.startswith("enqueue_: reference (")
    assert "not cpu: it takes a queue whose rows have no gaps, got strides (1, 8)" in told
    enqueue_(queue, torch.tensor(7), torch.ones(2, 3))
    assert torch.equal(queue[:, 0], torch.tensor([1.0, 0, 0, 0, 0, 0, 0, 1.0]))


@pytest.mark.usefixtures("other_working_memory")
def test_same_bits_with_any_number_of_threads(engine) -> None:
    keys, results = random(400, 515, torch.float32, 1), []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3, before):
            if engine.backend != "reference":
                torch.set_num_threads(threads)
            queue = torch.zeros(500, 515)
            enqueue_(queue, torch.tensor(300), keys, normalize=True)
            results.append(queue)
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(queue, results[0]) for queue in results)


def test_no_gradient_and_a_saved_queue_is_not_used(engine) -> None:
    queue, cursor = torch.ones(4, 3), torch.tensor(0)
    x = torch.ones(3, requires_grad=True)
    loss = (queue * x).sum()
    enqueue_(queue, cursor, 2 * x.expand(2, 3))
    assert not queue.requires_grad
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_in_inference_mode(engine) -> None:
    with torch.inference_mode():
        queue = torch.zeros(4, 3)
        enqueue_(queue, torch.tensor(3), torch.ones(2, 3))
        assert queue.sum() == 6


@pytest.mark.one_isa
def test_under_compile(engine) -> None:
    def step(queue: Tensor, cursor: Tensor, keys: Tensor) -> Tensor:
        enqueue_(queue, cursor, keys * 2, normalize=True)
        return queue.sum(1)

    keys = random(3, 6, torch.float32, 0)
    queues, cursors = [torch.zeros(5, 6) for _ in range(2)], [torch.tensor(4) for _ in range(2)]
    got = torch.compile(step, fullgraph=True)(queues[0], cursors[0], keys)
    torch.testing.assert_close(got, step(queues[1], cursors[1], keys))
    torch.testing.assert_close(queues[0], queues[1])
    assert cursors[0].item() == cursors[1].item() == 2


def test_keys_in_the_memory_of_the_queue_are_refused_and_nothing_is_changed(engine) -> None:
    queue, cursor = torch.zeros(8, 3), torch.tensor(1)
    with pytest.raises(ValueError, match="keys and queue share memory: clone the keys first"):
        enqueue_(queue, cursor, queue[2:5])
    assert cursor.item() == 1


Z = torch.zeros
BAD = [
    (dict(queue=Z(8)), ValueError, r"queue must have shape \(K, D\); got \(8\)"),
    (dict(queue=Z(0, 4)), ValueError, r"queue needs at least one row and one column; got \(0, 4\)"),
    (dict(queue=Z(8, 0), keys=Z(2, 0)), ValueError, r"got \(8, 0\)"),
    (dict(queue=Z(8, 4).long()), TypeError, "queue must be float32.*got torch.int64"),
    (dict(queue=Z(4).expand(8, 4)), ValueError, "queue is an expanded tensor"),
    (dict(keys=Z(2, 5)), ValueError, r"must agree on D; got \(8, 4\) and \(2, 5\)"),
    (dict(keys=Z(4)), ValueError, r"keys must have shape \(N, D\); got \(4\)"),
    (dict(keys=Z(2, 4).int()), TypeError, "keys must be float32.*got torch.int32"),
    (dict(keys=Z(2, 4, device="meta")), ValueError, "queue and keys must be on one device; got cpu and meta"),
    (dict(cursor=3), TypeError, "cursor must be a tensor; got int"),
    (dict(cursor=torch.tensor(3.0)), TypeError, "cursor must be int64; got torch.float32"),
    (
        dict(cursor=torch.zeros(2, dtype=torch.int64)),
        ValueError,
        r"cursor must be one number, \(\) or \(1\); got \(2\)",
    ),
    (dict(cursor=torch.tensor(3, device="meta")), ValueError, "queue and cursor must be on one device"),
    (dict(normalize=1), TypeError, "normalize must be True or False; got int"),
    (dict(queue=[1.0]), TypeError, "queue must be a tensor; got list"),
    (dict(keys=[1.0]), TypeError, "keys must be a tensor; got list"),
    (dict(backend="triton"), RuntimeError, "no such backend, only cuda, cpu, reference"),
]


@pytest.mark.parametrize(("change", "error", "message"), BAD, ids=[m[:40] for *_, m in BAD])
def test_bad_input_is_named(change: dict[str, object], error: type[Exception], message: str) -> None:
    arguments: dict[str, object] = {"queue": Z(8, 4), "cursor": torch.tensor(0), "keys": Z(2, 4), **change}
    with pytest.raises(error, match=message):
        enqueue_(**arguments)  # type: ignore[arg-type]
