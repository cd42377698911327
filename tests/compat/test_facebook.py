"""Facebook's names against the formulas of DINO and MAE in float64; their repositories are no packages."""

from __future__ import annotations

import inspect

import pytest
import torch
from facebook_helpers import Encoder, rows, saved
from torch import Tensor
from torch.nn.functional import log_softmax, softmax

from fastssl.compat.facebook import dino, mae, moco, moco_v3

EMPTY = inspect.Parameter.empty


@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        (moco.MoCo, dict(base_encoder=EMPTY, dim=128, K=65536, m=0.999, T=0.07, mlp=False)),
        (moco.MoCo.forward, dict(self=EMPTY, im_q=EMPTY, im_k=EMPTY)),
        (moco_v3.MoCo, dict(base_encoder=EMPTY, dim=256, mlp_dim=4096, T=1.0)),
        (moco_v3.MoCo_ResNet, dict(base_encoder=EMPTY, dim=256, mlp_dim=4096, T=1.0)),
        (moco_v3.MoCo_ViT.forward, dict(self=EMPTY, x1=EMPTY, x2=EMPTY, m=EMPTY)),
        (
            dino.DINOLoss,
            dict.fromkeys(
                ("out_dim", "ncrops", "warmup_teacher_temp", "teacher_temp", "warmup_teacher_temp_epochs", "nepochs"),
                EMPTY,
            )
            | dict(student_temp=0.1, center_momentum=0.9),
        ),
        (dino.DINOLoss.forward, dict.fromkeys(("self", "student_output", "teacher_output", "epoch"), EMPTY)),
        (mae.random_masking, dict(x=EMPTY, mask_ratio=EMPTY)),
        (mae.forward_loss, dict(imgs=EMPTY, pred=EMPTY, mask=EMPTY, norm_pix_loss=False)),
    ],
)
def test_arguments_have_the_originals_names_order_and_defaults(function, arguments: dict[str, object]) -> None:
    told = {p.name: p.default for p in inspect.signature(function).parameters.values()}
    assert list(told.items()) == list(arguments.items())


# ---- DINO ----


def dino_loss(student: Tensor, teacher: Tensor, center: Tensor, crops: int, student_temp: float, temp: float) -> Tensor:
    q = log_softmax(student / student_temp, -1).chunk(crops)
    p = softmax((teacher - center) / temp, -1).chunk(2)
    pairs = [-(p[t] * q[s]).sum(-1).mean() for t in range(2) for s in range(crops) if s != t]
    return torch.stack(pairs).mean()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("crops", "n", "k"), [(2, 5, 11), (10, 3, 7), (1, 4, 6)])
def test_dino(crops: int, n: int, k: int, dtype: torch.dtype) -> None:
    ours = dino.DINOLoss(k, crops, 0.04, 0.07, 3, 6, student_temp=0.2, center_momentum=0.8)
    ours = ours.double() if dtype == torch.float64 else ours
    exact = dict(rtol=1e-9, atol=1e-12) if dtype == torch.float64 else dict(rtol=2e-5, atol=2e-6)
    center = torch.zeros(1, k, dtype=torch.float64)
    for epoch, temp in ((0, 0.04), (1, 0.055), (2, 0.07), (5, 0.07)):
        student, teacher = rows(epoch, crops * n, k, dtype=dtype), rows(9 + epoch, 2 * n, k, dtype=dtype)
        student.requires_grad_()
        loss = ours(student, teacher, epoch)
        plain = student.detach().double().requires_grad_()
        want = dino_loss(plain, teacher.double(), center, crops, 0.2, temp)
        assert loss.dtype == torch.promote_types(dtype, torch.float32)
        torch.testing.assert_close(loss.double(), want, **exact)
        loss.backward()
        want.backward()
        bounds = dict(rtol=0.01, atol=1e-4) if dtype == torch.bfloat16 else exact
        torch.testing.assert_close(student.grad.double(), plain.grad, **bounds)
        center = 0.8 * center + 0.2 * teacher.double().mean(0, keepdim=True)
        torch.testing.assert_close(ours.center.double(), center, **exact)


def test_dinos_center_loads_and_survives_to_the_bit() -> None:
    ours, again = (dino.DINOLoss(7, 2, 0.04, 0.07, 3, 6) for _ in range(2))
    assert {name: x.shape for name, x in ours.state_dict().items()} == {"center": (1, 7)}
    again.load_state_dict({"center": rows(0, 1, 7, dtype=torch.float32)})
    assert torch.equal(again.center, rows(0, 1, 7, dtype=torch.float32))
    for step in range(3):
        ours(rows(step, 8, 7, dtype=torch.float32), rows(9, 8, 7, dtype=torch.float32), step)
    again.load_state_dict(saved(ours))
    assert torch.equal(again.center, ours.center)


def test_dino_refuses_what_it_cannot_use() -> None:
    ours, x = dino.DINOLoss(7, 4, 0.04, 0.07, 3, 6), rows(0, 8, 7, dtype=torch.float32)
    for student, teacher, epoch, told in (
        (x[:6], x, 0, r"student_output must be 4 crops of as many samples, one after another; got \(6, 7\)"),
        (x, x[:3], 0, r"teacher_output must be 2 crops of as many samples, one after another; got \(3, 7\)"),
        (x, x, 0, r"must agree on B and K; got \(4, 2, 7\) and \(2, 4, 7\)"),
        (x[:, :5], x[:4, :5], 0, r"student_output must have 7 prototypes; got \(8, 5\)"),
        (x, x[:4], 6, r"epoch must be in \[0, 6\); got 6"),
        (x, x[:4], -1, r"epoch must be in \[0, 6\); got -1"),
    ):
        with pytest.raises(ValueError, match=told):
            ours(student, teacher, epoch)
    with pytest.raises(ValueError, match="DINOLoss: of 6 epochs, 8 cannot be for the teacher's warmup"):
        dino.DINOLoss(7, 4, 0.04, 0.07, 8, 6)
    with pytest.raises(ValueError, match=r"DINOLoss: teacher_temp must be finite and above 0; got 0\.0"):
        dino.DINOLoss(7, 4, 0.04, 0.0, 3, 6)


# ---- MAE ----


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize(("n", "length", "d", "ratio"), [(2, 16, 5, 0.75), (3, 49, 8, 0.6), (1, 7, 3, 0.0)])
def test_random_masking_draws_the_same(n: int, length: int, d: int, ratio: float, dtype: torch.dtype) -> None:
    x = rows(0, n, length, d, dtype=dtype).requires_grad_()
    torch.manual_seed(0)
    masked, mask, restore = mae.random_masking(x, ratio)
    torch.manual_seed(0)
    order = torch.rand(n, length).argsort(1)
    kept = order[:, : int(length * (1 - ratio))]
    assert torch.equal(restore, order.argsort(1))
    assert torch.equal(masked, x.gather(1, kept[:, :, None].expand(-1, -1, d)))
    assert torch.equal(mask, torch.ones(n, length).scatter(1, kept, 0.0))
    masked.sum().backward()
    assert torch.equal(x.grad, (1 - mask)[:, :, None].expand_as(x).to(dtype))


def pixel_loss(imgs: Tensor, pred: Tensor, mask: Tensor, p: int, normed: bool) -> Tensor:
    n, c, height, width = imgs.shape
    target = imgs.reshape(n, c, height // p, p, width // p, p).permute(0, 2, 4, 3, 5, 1).reshape(n, -1, p * p * c)
    if normed:
        target = (target - target.mean(-1, keepdim=True)) / (target.var(-1, keepdim=True) + 1e-6).sqrt()
    return ((pred - target).square().mean(-1) * mask).sum() / mask.sum()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("normed", [False, True])
@pytest.mark.parametrize(("n", "c", "side", "p"), [(2, 3, 8, 4), (3, 1, 6, 2), (1, 4, 15, 5)])
def test_forward_loss(n: int, c: int, side: int, p: int, normed: bool, dtype: torch.dtype) -> None:
    length = (side // p) ** 2
    imgs, pred = rows(0, n, c, side, side, dtype=dtype), rows(1, n, length, p * p * c, dtype=dtype).requires_grad_()
    mask = torch.randint(2, (n, length), generator=torch.Generator().manual_seed(2)).float()
    mask[0, 0] = 1
    loss = mae.forward_loss(imgs, pred, mask, normed)
    plain = pred.detach().double().requires_grad_()
    want = pixel_loss(imgs.double(), plain, mask.double(), p, normed)
    exact = dict(rtol=1e-9, atol=1e-11) if dtype == torch.float64 else dict(rtol=2e-5, atol=2e-6)
    torch.testing.assert_close(loss.double(), want, **exact)
    loss.backward()
    want.backward()
    rounded = dict(rtol=0.01, atol=1e-3) if dtype == torch.bfloat16 else exact
    torch.testing.assert_close(pred.grad.double(), plain.grad, **rounded)


def test_numbers_of_a_mask_are_weights() -> None:
    imgs, pred, mask = rows(0, 1, 3, 8, 8), rows(1, 1, 4, 48), torch.tensor([[0.5, 0.0, 0.1, 0.0]])
    want = pixel_loss(imgs, pred, mask.double(), 4, False)
    torch.testing.assert_close(mae.forward_loss(imgs, pred, mask), want, rtol=1e-6, atol=0)


def test_two_devices_are_refused() -> None:
    x = rows(0, 4, 6, dtype=torch.float32)
    imgs, pred, mask = rows(0, 2, 3, 8, 8), rows(1, 2, 4, 48), torch.ones(2, 4)
    for call, told in (
        (lambda: moco.MoCo(Encoder, 5, 16)(x, x.to("meta")), "MoCo: im_q and im_k"),
        (lambda: dino.DINOLoss(6, 2, 0.04, 0.07, 3, 6)(x, x.to("meta"), 0), "DINOLoss: student and teacher"),
        (lambda: mae.forward_loss(imgs, pred.to("meta"), mask), "MAELoss: images and prediction"),
        (lambda: mae.forward_loss(imgs, pred, mask.to("meta")), "MAELoss: images and mask"),
    ):
        with pytest.raises(ValueError, match=f"{told} must be on one device; got cpu and meta"):
            call()


def test_mae_refuses_what_it_cannot_use() -> None:
    imgs, pred = rows(0, 2, 3, 8, 8), rows(1, 2, 4, 48)
    with pytest.raises(ValueError, match=r"pred must have P x P x 3 numbers a patch for images .*; got \(2, 4, 47\)"):
        mae.forward_loss(imgs, pred[..., :47], torch.ones(2, 4))
    with pytest.raises(ValueError, match=r"MAELoss: mask must be \(2, 4\); got \(2, 3\)"):
        mae.forward_loss(imgs, pred, torch.ones(2, 3))
    with pytest.raises(ValueError, match=r"prediction must be \(2, 4, 48\) for images .*; got \(2, 3, 48\)"):
        mae.forward_loss(imgs, pred[:, :3], torch.ones(2, 3))
    with pytest.raises(ValueError, match=r"random_masking: x must have shape \(N, L, D\); got \(2, 3, 8, 8\)"):
        mae.random_masking(imgs, 0.75)
    with pytest.raises(ValueError, match=r"ratio must be in \[0, 1\); got 1\.0"):
        mae.random_masking(pred, 1.0)


# ---- what differs on purpose ----


def test_nothing_moves_under_eval() -> None:
    x = rows(0, 8, 6, dtype=torch.float32)
    model, third = moco.MoCo(Encoder, 5, 16).eval(), moco_v3.MoCo(Encoder, 5, 7).eval()
    loss = dino.DINOLoss(6, 2, 0.04, 0.07, 3, 6).eval()
    for module, call in (
        (model, lambda: model(x, x)),
        (third, lambda: third(x, x, 0.5)),
        (loss, lambda: loss(x, x, 0)),
    ):
        for i, parameter in enumerate(module.parameters()):  # so that the encoders differ
            parameter.data.add_(rows(i, *parameter.shape, dtype=torch.float32))
        before = saved(module)
        call()
        for name, value in module.state_dict().items():
            assert torch.equal(value, before[name]), name


def test_nothing_removed_is_a_loss_of_0() -> None:
    imgs, pred = rows(0, 2, 3, 8, 8), rows(1, 2, 4, 48)
    assert mae.forward_loss(imgs, pred, torch.zeros(2, 4)) == 0


def test_images_need_not_be_square() -> None:
    imgs, pred, mask = rows(0, 2, 3, 8, 12), rows(1, 2, 6, 48), torch.ones(2, 6, dtype=torch.float64)
    torch.testing.assert_close(mae.forward_loss(imgs, pred, mask), pixel_loss(imgs, pred, mask, 4, False))


def test_a_tenth_of_ten_patches_is_one() -> None:
    masked, mask, _ = mae.random_masking(rows(0, 2, 10, 3), 0.9)  # int(10 * (1 - 0.9)) is 0
    assert masked.shape == (2, 1, 3)
    assert torch.equal(mask.sum(1), torch.full((2,), 9.0))
