"""The losses' Triton kernels on a GPU, at widths that have blocks of their own: right, and the same bits each time."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from fastssl import ops

pytestmark = pytest.mark.gpu

ROWS, QUEUE = 507, 2001  # which fill no blocks
# the ops' own tests have narrower ones, and float16's code is bfloat16's
WIDTHS = [*((torch.bfloat16, d) for d in (80, 200, 256, 384, 512, 1000)), (torch.float32, 200), (torch.float32, 512)]
TOLERANCE = {torch.float32: 3e-6, torch.bfloat16: 6e-3}  # of the norm; 16 bits round gradients
Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
LOSSES: dict[str, Loss] = {
    "clip_loss": lambda x, y, _: ops.clip_loss(x, y, logit_scale=5.0),
    "info_nce": lambda x, y, others: ops.info_nce(x, y, negatives=others, temperature=0.2),
    "nt_xent": lambda x, y, _: ops.nt_xent(x, y, temperature=0.2),
    "queue_info_nce": lambda x, y, queue: ops.queue_info_nce(x, y, queue, temperature=0.2),
    "siglip_loss": lambda x, y, _: ops.siglip_loss(x, y, logit_scale=3.0, logit_bias=-2.0),
}


def with_gradients(loss: Loss, backend: str, x: Tensor, y: Tensor, others: Tensor) -> list[Tensor]:
    leaves = [part.detach().clone().requires_grad_() for part in (x, y)]
    with ops.backend(backend):
        value = loss(*leaves, others)
        return [value.detach(), *torch.autograd.grad(value, leaves)]


@pytest.mark.parametrize(("dtype", "width"), WIDTHS)
@pytest.mark.parametrize("name", LOSSES)
def test_rows_of_any_width(name: str, width: int, dtype: torch.dtype, gpu: torch.device) -> None:
    torch.manual_seed(0)
    x, y, others = (normalize(torch.randn(n, width, device=gpu), dim=1).to(dtype) for n in (ROWS, ROWS, QUEUE))
    exact = with_gradients(LOSSES[name], "reference", x.double(), y.double(), others.double())
    first, *again = (with_gradients(LOSSES[name], "triton", x, y, others) for _ in range(4))
    for got, want in zip(first, exact, strict=True):
        assert (got.double() - want).norm() <= TOLERANCE[dtype] * want.norm()
    for other in again:
        for got, same in zip(other, first, strict=True):
            assert torch.equal(got, same)
