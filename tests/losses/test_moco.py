"""MoCoLoss: what it computes, what it remembers, and that this survives a checkpoint."""

from __future__ import annotations

import io

import pytest
import torch
from formulas import moco
from torch.nn.functional import normalize

from fastssl.losses import MoCoLoss


def rows(n: int, seed: int) -> torch.Tensor:
    return torch.randn(n, 5, generator=torch.Generator().manual_seed(seed))


def test_equals_the_formula_and_enqueues_afterwards() -> None:
    loss = MoCoLoss(0.2, dim=5, length=12)
    queue = loss.queue.clone()
    query, key = rows(4, 0), rows(4, 1)
    torch.testing.assert_close(loss(query, key), moco(query, key, queue, 0.2))
    torch.testing.assert_close(loss.queue, torch.cat([normalize(key, dim=1), queue[4:]]))
    assert loss.cursor == 4


def test_the_key_gets_no_gradient_and_the_queue_may_move_before_the_backward() -> None:
    loss = MoCoLoss(0.2, dim=5, length=4)
    query, key = rows(4, 0).requires_grad_(), rows(4, 1).requires_grad_()
    before = MoCoLoss(0.2, dim=5, length=4).eval()
    before.queue.copy_(loss.queue)
    loss(query, key).backward()  # its whole queue is other keys by now
    got, query.grad = query.grad, None
    before(query, key).backward()
    torch.testing.assert_close(got, query.grad)
    assert key.grad is None


def test_under_eval_the_queue_stays() -> None:
    loss = MoCoLoss(0.2, dim=5, length=12).eval()
    before = loss.queue.clone()
    loss(rows(4, 0), rows(4, 1))
    assert torch.equal(loss.queue, before)
    assert loss.cursor == 0


def test_a_queue_survives_a_checkpoint_to_the_bit() -> None:
    loss = MoCoLoss(0.2, dim=5, length=10)
    for seed in range(3):  # wraps
        loss(rows(4, seed), rows(4, 10 + seed))
    file = io.BytesIO()
    torch.save(loss.state_dict(), file)
    file.seek(0)
    again = MoCoLoss(0.2, dim=5, length=10)
    again.load_state_dict(torch.load(file))
    assert torch.equal(again.queue, loss.queue)
    assert again.cursor == loss.cursor == 2
    assert torch.equal(again(rows(4, 5), rows(4, 6)), loss(rows(4, 5), rows(4, 6)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_queue_may_be_cast(dtype: torch.dtype) -> None:
    loss = MoCoLoss(0.2, dim=5, length=12).to(dtype)
    query, key = rows(4, 0).to(dtype), rows(4, 1).to(dtype)
    want = moco(query.float(), key.float(), loss.queue.float(), 0.2)
    torch.testing.assert_close(loss(query, key), want, rtol=torch.finfo(dtype).eps, atol=0)
    assert loss.queue.dtype == dtype
    torch.testing.assert_close(loss.queue[:4], normalize(key.float(), dim=1).to(dtype))


def test_keys_may_be_enqueued_by_hand() -> None:
    loss, keys = MoCoLoss(0.2, dim=5, length=12), rows(4, 0)
    loss.enqueue(keys)
    assert torch.equal(loss.queue[:4], keys)
    with pytest.raises(ValueError, match=r"MoCoLoss: keys must have shape \(N, D\); got \(5\)"):
        loss.enqueue(keys[0])


def test_bad_input_is_named() -> None:
    loss = MoCoLoss(0.2, dim=5, length=6)
    with pytest.raises(ValueError, match=r"MoCoLoss: the queue has 6 keys, and the batch \(of all processes\) 8"):
        loss(rows(8, 0), rows(8, 1))
    with pytest.raises(ValueError, match=r"MoCoLoss: the queue has keys of 5 features; got \(4, 3\)"):
        loss(rows(4, 0)[:, :3], rows(4, 1)[:, :3])
    with pytest.raises(ValueError, match=r"MoCoLoss: query and key must have the same shape"):
        loss(rows(4, 0), rows(3, 1))
    with pytest.raises(ValueError, match="MoCoLoss: length must be at least 1; got 0"):
        MoCoLoss(0.2, dim=5, length=0)
    assert loss.cursor == 0
