"""DINOLoss: its center and Sinkhorn-Knopp in its place, and that the center survives a checkpoint."""

from __future__ import annotations

import pytest
import torch
from formulas import centered, dino

from fastssl.losses import DINOLoss
from fastssl.ops import sinkhorn_knopp

STUDENT, TEACHER = (torch.randn(n, 3, 7, generator=torch.Generator().manual_seed(n)) for n in (4, 2))


def test_centers_by_what_earlier_batches_moved() -> None:
    loss = DINOLoss(7, teacher_temp=0.05, center_momentum=0.75)
    torch.testing.assert_close(loss(STUDENT, TEACHER), dino(STUDENT, centered(TEACHER, torch.zeros(7), 0.05), 0.1))
    center = 0.25 * TEACHER.mean((0, 1))
    torch.testing.assert_close(loss.center, center)
    torch.testing.assert_close(
        loss(STUDENT, TEACHER, teacher_temp=0.2), dino(STUDENT, centered(TEACHER, center, 0.2), 0.1)
    )


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
    torch.testing.assert_close(loss(STUDENT, TEACHER), dino(STUDENT, p, 0.1))
    assert loss.center.eq(0).all()


def test_float64_logits_are_taken() -> None:
    loss = DINOLoss(7)
    views = STUDENT.double(), TEACHER.double()
    want = dino(views[0], centered(views[1], torch.zeros(7), 0.04), 0.1)
    torch.testing.assert_close(loss(*views), want, rtol=1e-5, atol=0)
    torch.testing.assert_close(loss.center, 0.1 * TEACHER.mean((0, 1)))


def test_a_center_survives_a_checkpoint_to_the_bit() -> None:
    loss, again = DINOLoss(7), DINOLoss(7)
    loss(STUDENT, TEACHER)
    again.load_state_dict(loss.state_dict())
    assert torch.equal(again.center, loss.center)
    assert torch.equal(again(STUDENT, TEACHER), loss(STUDENT, TEACHER))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_module_that_is_cast_keeps_its_center(dtype: torch.dtype) -> None:
    loss, plain = DINOLoss(7), DINOLoss(7)
    for each in (loss, plain):
        each(STUDENT, TEACHER)
    torch.nn.ModuleDict({"loss": loss}).to(dtype)
    assert torch.equal(loss.center, plain.center)
    views = STUDENT.to(dtype), TEACHER.to(dtype)
    torch.testing.assert_close(loss(*views), plain(*(x.float() for x in views)), rtol=1e-5, atol=0)
    assert loss.center.dtype == torch.float32
    torch.testing.assert_close(loss.center, plain.center)
    assert loss.double().center.dtype == torch.float64


def test_the_center_may_be_moved_by_hand() -> None:
    loss = DINOLoss(7, center_momentum=0.5)
    loss.update_center(TEACHER)
    torch.testing.assert_close(loss.center, 0.5 * TEACHER.mean((0, 1)))
    with pytest.raises(ValueError, match=r"DINOLoss: teacher must have 7 prototypes; got \(2, 3, 6\)"):
        loss.update_center(TEACHER[..., 1:])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: DINOLoss(8)(STUDENT, TEACHER), r"DINOLoss: student must have 8 prototypes; got \(4, 3, 7\)"),
        (lambda: DINOLoss(7)(STUDENT[0], TEACHER), r"DINOLoss: student must have shape \(S, B, K\); got \(3, 7\)"),
        (lambda: DINOLoss(7)(STUDENT[:, :2], TEACHER), r"DINOLoss: student \(S, B, K\) and teacher .* must agree on B"),
        (lambda: DINOLoss(7)(TEACHER, STUDENT), r"teacher's crops must be the first of .*; got student \(2, 3, 7\)"),
        (lambda: DINOLoss(7)(STUDENT[:1], TEACHER[:1]), "DINOLoss: needs two different crops"),
        (lambda: DINOLoss(7, centering="mean"), "DINOLoss: centering must be one of center, sinkhorn; got 'mean'"),
        (lambda: DINOLoss(7, teacher_temp=0.0), "DINOLoss: teacher_temp must be finite and above 0; got 0.0"),
        (lambda: DINOLoss(7, center_momentum=2.0), r"DINOLoss: center_momentum must be a number in \[0, 1\]; got 2.0"),
        (lambda: DINOLoss(0), "DINOLoss: num_prototypes must be at least 1; got 0"),
    ],
)
def test_bad_input_is_named(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_an_epoch_is_not_taken_for_a_temperature() -> None:
    """Facebook's and lightly's losses take it third."""
    with pytest.raises(TypeError, match="positional"):
        DINOLoss(7)(STUDENT, TEACHER, 3)


def test_a_list_of_crops_is_told_how_to_become_a_tensor() -> None:
    with pytest.raises(TypeError, match=r"student must be a tensor; got list of 4 \(torch\.stack or torch\.cat makes"):
        DINOLoss(7)(list(STUDENT), list(TEACHER))


def test_what_is_told_is_what_the_loss_takes() -> None:
    for centering in ("center", "sinkhorn"):
        loss = DINOLoss(7, centering=centering, teacher_temp=0.5)
        loss(STUDENT, TEACHER)  # moves the center
        told = loss.told(TEACHER)
        torch.testing.assert_close(told.sum(-1), torch.ones(2, 3))
        torch.testing.assert_close(loss.eval()(STUDENT, TEACHER), dino(STUDENT, told, 0.1))
        cold = loss.told(TEACHER, teacher_temp=0.1)
        torch.testing.assert_close(loss(STUDENT, TEACHER, teacher_temp=0.1), dino(STUDENT, cold, 0.1))
