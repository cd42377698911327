"""Rows of float32 that a matrix unit multiplies in three parts: as exact as floats are, and what has no parts."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from fastssl import ops
from fastssl.ops import _native

Loss = Callable[[Tensor, Tensor], Tensor]
LOSSES: dict[str, Loss] = {
    "nt_xent": lambda a, b: ops.nt_xent(a, b, temperature=0.2),
    "clip_loss": lambda a, b: ops.clip_loss(a, b, logit_scale=5.0),
    "siglip_loss": lambda a, b: ops.siglip_loss(a, b, logit_scale=5.0, logit_bias=-5.0),
    "info_nce": lambda a, b: ops.info_nce(a, b, temperature=0.2),
    "queue_info_nce": lambda a, b: ops.queue_info_nce(a, b.detach(), b.detach(), temperature=0.2),
}
UNIT, FLOATS = "amx", "avx512"

pytestmark = pytest.mark.skipif(
    _native.cpu is None or _native.cpu.supported_isa() != UNIT, reason="this processor has no matrix unit"
)


def normalised(n: int, d: int) -> Tensor:
    return normalize(torch.randn(n, d), dim=1)


@pytest.fixture(autouse=True)
def kernels() -> Iterator[None]:
    with ops.backend("cpu"):
        yield
    _native.cpu.set_isa(_native.cpu.supported_isa())


def results(isa: str, loss: Loss, a: Tensor, b: Tensor) -> list[Tensor]:
    """The loss, and the gradients of what has one."""
    _native.cpu.set_isa(isa)
    rows = [x.clone().requires_grad_() for x in (a, b)]
    value = loss(*rows)
    value.backward()
    return [value.detach(), *(x.grad for x in rows if x.grad is not None)]


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
@pytest.mark.parametrize("d", [16, 129, 512])
def test_they_are_as_exact_as_floats(loss: Loss, d: int) -> None:
    torch.manual_seed(d)
    a, b = normalised(300, d), normalised(300, d)
    with ops.backend("reference"):
        exact = results(UNIT, loss, a.double(), b.double())
    errors = {
        isa: [(x - y).norm() / y.norm() for x, y in zip(results(isa, loss, a, b), exact, strict=True)]
        for isa in (UNIT, FLOATS)
    }
    for of_unit, of_floats in zip(errors[UNIT], errors[FLOATS], strict=True):
        assert of_unit <= 1.5 * of_floats + 6e-8  # half a unit of the last place


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
@pytest.mark.parametrize("side", [0, 1])
@pytest.mark.parametrize("number", [3.39e38, 3.4e38, -math.inf], ids=["largest with parts", "largest", "infinite"])
def test_what_has_no_parts_is_multiplied_as_it_is(loss: Loss, side: int, number: float) -> None:
    """In a feature that is 0 elsewhere: the first part of a number near float's largest would be infinite, and its
    product with 0 NaN."""
    torch.manual_seed(0)
    rows = [normalised(200, 64), normalised(200, 64)]
    for x in rows:
        x[:, 7] = 0.0
    rows[side][150, 7] = number
    of_unit, of_floats = (results(isa, loss, *rows) for isa in (UNIT, FLOATS))
    assert math.isfinite(of_floats[0]) == math.isfinite(number)
    for x, y in zip(of_unit, of_floats, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-5, atol=1e-6, equal_nan=True)


@pytest.mark.parametrize(
    ("of_query", "of_queue"),
    [(torch.float16, torch.float16), (torch.float32, torch.bfloat16), (torch.bfloat16, torch.float32)],
)
def test_other_types_are_multiplied_as_floats(of_query: torch.dtype, of_queue: torch.dtype) -> None:
    """Where not all rows are bfloat16."""
    torch.manual_seed(0)
    query, queue = normalised(50, 100).to(of_query), normalised(700, 100).to(of_queue)

    def loss(query: Tensor, queue: Tensor) -> Tensor:
        return ops.queue_info_nce(query, query.detach(), queue.detach(), temperature=0.2)

    for x, y in zip(results(UNIT, loss, query, queue), results(FLOATS, loss, query, queue), strict=True):
        torch.testing.assert_close(x, y)


def test_a_row_of_a_queue_that_is_infinitely_far_counts_for_nothing() -> None:
    torch.manual_seed(0)
    query, queue = normalised(8, 32).abs(), normalised(500, 32)
    queue[123, 4] = -math.inf
    losses = []
    for isa in (UNIT, FLOATS):
        _native.cpu.set_isa(isa)
        losses.append(ops.queue_info_nce(query, query, queue, temperature=0.2))
    assert math.isfinite(losses[0])
    torch.testing.assert_close(*losses)
