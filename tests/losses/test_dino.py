"""DINOLoss: its center and Sinkhorn-Knopp in its place, and that the center survives a checkpoint."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import log_softmax, softmax

from fastssl.losses import DINOLoss
from fastssl.ops import sinkhorn_knopp

STUDENT, TEACHER = (torch.randn(n, 3, 7, generator=torch.Generator().manual_seed(n)) for n in (4, 2))


def pairs(p: Tensor) -> Tensor:
    """The mean cross-entropy of all pairs but those of one crop."""
    log_q = log_softmax(STUDENT / 0.1, -1)
    return torch.stack([-(p[t] * log_q[s]).sum(-1).mean() for t in range(2) for s in range(4) if s != t]).mean()


def test_centers_by_what_earlier_batches_moved() -> None:
    loss = DINOLoss(7, teacher_temp=0.05, center_momentum=0.75)
    torch.testing.assert_close(loss(STUDENT, TEACHER), pairs(softmax(TEACHER / 0.05, -1)))
    center = 0.25 * TEACHER.mean((0, 1))
    torch.testing.assert_close(loss.center, center)
    torch.testing.assert_close(loss(STUDENT, TEACHER, 0.2), pairs(softmax((TEACHER - center) / 0.2, -1)))


def test_the_backward_takes_the_center_of_its_forward() -> None:
    """The call moves the center before the backward comes."""
    gradients = []
    for loss in (DINOLoss(7, center_momentum=0.0), DINOLoss(7).eval()):
        student = STUDENT.clone().requires_grad_()
        loss(student, TEACHER).backward()
        gradients.append(student.grad)
    torch.testing.assert_close(*gradients)


def test_under_eval_the_center_stays() -> None:
    loss = DINOLoss(7).eval()
    loss(STUDENT, TEACHER)
    assert loss.center.eq(0).all()


def test_sinkhorn_is_over_all_crops_together() -> None:
    loss = DINOLoss(7, centering="sinkhorn", teacher_temp=0.5)
    p = sinkhorn_knopp(TEACHER.flatten(0, 1), temp=0.5, iterations=3).view_as(TEACHER)
    torch.testing.assert_close(loss(STUDENT, TEACHER), pairs(p))
    assert loss.center.eq(0).all()


def test_float64_logits_are_taken() -> None:
    loss = DINOLoss(7)
    torch.testing.assert_close(
        loss(STUDENT.double(), TEACHER.double()), pairs(softmax(TEACHER / 0.04, -1)).double(), rtol=1e-5, atol=0
    )
    torch.testing.assert_close(loss.center, 0.1 * TEACHER.mean((0, 1)))


def test_a_center_survives_a_checkpoint_to_the_bit() -> None:
    loss, again = DINOLoss(7), DINOLoss(7)
    loss(STUDENT, TEACHER)
    again.load_state_dict(loss.state_dict())
    assert torch.equal(again.center, loss.center)
    assert torch.equal(again(STUDENT, TEACHER), loss(STUDENT, TEACHER))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: DINOLoss(8)(STUDENT, TEACHER), r"DINOLoss: student must have 8 prototypes; got \(4, 3, 7\)"),
        (lambda: DINOLoss(7)(STUDENT[0], TEACHER), r"DINOLoss: student must have shape \(S, B, K\); got \(3, 7\)"),
        (lambda: DINOLoss(7)(STUDENT[:, :2], TEACHER), "must agree on B and K"),
        (lambda: DINOLoss(7)(STUDENT[:1], TEACHER[:1]), "needs two different crops"),
        (lambda: DINOLoss(7, centering="mean"), "DINOLoss: centering must be one of center, sinkhorn; got 'mean'"),
        (lambda: DINOLoss(7, teacher_temp=0.0), "DINOLoss: teacher_temp must be finite and above 0; got 0.0"),
        (lambda: DINOLoss(0), "DINOLoss: num_prototypes must be at least 1; got 0"),
    ],
)
def test_bad_input_is_named(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
