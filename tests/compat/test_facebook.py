"""Facebook's names against the formulas of MoCo, DINO and MAE in float64; their repositories are no packages."""

from __future__ import annotations

import copy
import inspect
import io

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, log_softmax, normalize, softmax

from fastssl.compat.facebook import dino, mae, moco, moco_v3


class Encoder(nn.Module):
    """Ends in a linear layer with the name that is given, as torchvision's ResNets and timm's transformers do."""

    def __init__(self, num_classes: int, last: str = "fc") -> None:
        super().__init__()
        self.body, self.last = nn.Sequential(nn.Linear(6, 9), nn.ReLU()), last
        setattr(self, last, nn.Linear(9, num_classes))

    def forward(self, x: Tensor) -> Tensor:
        return getattr(self, self.last)(self.body(x))


def transformer(num_classes: int) -> Encoder:
    return Encoder(num_classes, "head")


def rows(seed: int, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def followed(target: nn.Module, source: nn.Module, m: float) -> None:
    for ours, theirs in zip(target.parameters(), source.parameters(), strict=True):
        ours.data = m * ours.data + (1 - m) * theirs.data


def saved(module: nn.Module) -> dict[str, Tensor]:
    file = io.BytesIO()
    torch.save(module.state_dict(), file)
    file.seek(0)
    return torch.load(file)


def gradients(module: nn.Module) -> list[Tensor]:
    found = [parameter.grad.clone() for parameter in module.parameters()]
    module.zero_grad()
    return found


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


# ---- MoCo ----


def moco_step(model: moco.MoCo, im_q: Tensor, im_k: Tensor) -> tuple[Tensor, Tensor]:
    """The original's step in plain torch: logits and loss; gradients and buffers are left in the model."""
    followed(model.encoder_k, model.encoder_q, model.m)
    q, k = normalize(model.encoder_q(im_q)), normalize(model.encoder_k(im_k)).detach()
    logits = torch.cat([(q * k).sum(1, keepdim=True), q @ model.queue], 1) / model.T
    loss = cross_entropy(logits, torch.zeros(len(q), dtype=torch.int64))
    loss.backward()
    model.queue = model.queue.clone()
    model.queue[:, (model.queue_ptr + torch.arange(len(q))) % model.K] = k.T
    model.queue_ptr = (model.queue_ptr + len(q)) % model.K
    return logits, loss


@pytest.mark.parametrize("fused", [False, True], ids=["logits", "loss"])
@pytest.mark.parametrize(
    ("n", "dim", "length", "m", "t", "mlp"),
    [(4, 5, 16, 0.999, 0.07, False), (6, 3, 12, 0.9, 0.2, True), (3, 8, 7, 0.5, 1.0, True)],
)
def test_moco_takes_the_originals_steps(
    n: int, dim: int, length: int, m: float, t: float, mlp: bool, fused: bool
) -> None:
    ours = moco.MoCo(Encoder, dim, length, m, t, mlp).double()
    plain = copy.deepcopy(ours)
    for step in range(length // n + 2):
        views = rows(2 * step, n, 6), rows(2 * step + 1, n, 6)
        want_logits, want_loss = moco_step(plain, *views)
        if fused:
            loss = ours.loss(*views)
        else:
            logits, targets = ours(*views)
            torch.testing.assert_close(logits, want_logits)
            assert torch.equal(targets, torch.zeros(n, dtype=torch.int64))
            loss = cross_entropy(logits, targets)
        torch.testing.assert_close(loss, want_loss)
        loss.backward()
        torch.testing.assert_close(gradients(ours.encoder_q), gradients(plain.encoder_q))
        assert all(parameter.grad is None for parameter in ours.encoder_k.parameters())
        torch.testing.assert_close(ours.state_dict(), plain.state_dict())
        for network in (ours.encoder_q, plain.encoder_q):  # as an optimizer would
            network.body[0].weight.data.mul_(0.9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_mocos_logits_are_in_float32(dtype: torch.dtype) -> None:
    model = moco.MoCo(Encoder, 5, 16, T=0.2, mlp=True).to(dtype)
    plain = copy.deepcopy(model).double()
    views = rows(0, 4, 6, dtype=dtype), rows(1, 4, 6, dtype=dtype)
    logits, targets = model(*views)
    want, _ = moco_step(plain, *(x.double() for x in views))
    assert logits.dtype == torch.float32
    exact = dtype == torch.float32
    torch.testing.assert_close(logits.double(), want, rtol=1e-4 if exact else 0.1, atol=1e-5 if exact else 0.1)
    cross_entropy(logits, targets).backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.encoder_q.parameters())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert moco.MoCo(Encoder, 5, 16)(*(x.float() for x in views))[0].dtype == torch.float32


def test_mocos_checkpoints_load_and_survive_to_the_bit() -> None:
    model = moco.MoCo(Encoder, 5, 16, mlp=True)
    model(rows(0, 4, 6, dtype=torch.float32), rows(1, 4, 6, dtype=torch.float32))
    ends = ("body.0.weight", "body.0.bias", "fc.0.weight", "fc.0.bias", "fc.2.weight", "fc.2.bias")
    names = {f"encoder_{which}.{end}" for which in "qk" for end in ends}
    assert model.state_dict().keys() == {"queue", "queue_ptr", *names}
    assert (model.queue.shape, model.queue_ptr.shape) == ((5, 16), (1,))
    theirs = {name: x.clone(memory_format=torch.contiguous_format) for name, x in saved(model).items()}
    views = rows(2, 4, 6, dtype=torch.float32), rows(3, 4, 6, dtype=torch.float32)
    results = []
    for state, assign in ((saved(model), False), (theirs, False), (theirs, True)):
        again = moco.MoCo(Encoder, 5, 16, mlp=True)
        again.load_state_dict(state, assign=assign)
        for name, x in again.state_dict().items():
            assert torch.equal(x, model.state_dict()[name]), name
        results.append((again(*views)[0], again.queue.clone(), again.queue_ptr.clone()))
    for logits, queue, pointer in results[1:]:
        torch.testing.assert_close(logits, results[0][0])
        assert torch.equal(queue, results[0][1])
        assert torch.equal(pointer, results[0][2])


def test_moco_refuses_what_it_cannot_use() -> None:
    x = rows(0, 4, 6, dtype=torch.float32)
    with pytest.raises(ValueError, match=r"MoCo: the queue has 3 keys, and the batch \(of all processes\) 4"):
        moco.MoCo(Encoder, 5, 3)(x, x)
    with pytest.raises(
        TypeError, match=r"MoCo: base_encoder must make an encoder .*; got a Linear that is made already"
    ):
        moco.MoCo(torch.nn.Linear(6, 5), 5, 3)
    with pytest.raises(
        ValueError, match=r"MoCo: im_q and im_k must be views of the same images; got \(4, 6\) and \(3, 6\)"
    ):
        moco.MoCo(Encoder, 5, 8)(x, x[:3])
    with pytest.raises(ValueError, match=r"MoCo: the encoder must give features \(N, 5\); got \(4, 6\)"):
        moco.MoCo(lambda num_classes: nn.Identity(), 5, 8)(x, x)
    with pytest.raises(ValueError, match="whose last layer, fc, is linear; got Identity with no fc"):
        moco.MoCo(lambda num_classes: nn.Identity(), mlp=True)
    for settings, told in ((dict(m=1.5), "momentum"), (dict(T=0.0), "T must be finite"), (dict(K=0), "K must be at")):
        with pytest.raises(ValueError, match=f"MoCo: {told}.* got "):
            moco.MoCo(Encoder, 5, **(dict(K=8) | settings))
    with pytest.raises(RuntimeError, match="size mismatch for queue"):
        moco.MoCo(Encoder, 5, 8).load_state_dict(moco.MoCo(Encoder, 5, 16).state_dict())


# ---- MoCo v3 ----


@pytest.mark.parametrize(
    ("kind", "base", "dim", "width", "t"),
    [
        (moco_v3.MoCo_ResNet, Encoder, 5, 7, 1.0),
        (moco_v3.MoCo_ViT, transformer, 4, 8, 0.2),
        (moco_v3.MoCo, Encoder, 3, 4, 0.07),
        (moco_v3.MoCo, transformer, 6, 5, 0.5),
    ],
)
def test_moco_v3_takes_the_originals_steps(kind, base, dim: int, width: int, t: float) -> None:
    ours = kind(base, dim, width, t).double()
    plain = copy.deepcopy(ours)
    for step, m in enumerate((0.99, 0.5, 1.0)):
        x1, x2 = rows(2 * step, 6, 6), rows(2 * step + 1, 6, 6)
        loss = ours(x1, x2, m)
        q1, q2 = (plain.predictor(plain.base_encoder(x)) for x in (x1, x2))
        followed(plain.momentum_encoder, plain.base_encoder, m)
        k1, k2 = (plain.momentum_encoder(x).detach() for x in (x1, x2))
        want = sum(
            2 * t * cross_entropy(normalize(q) @ normalize(k).T / t, torch.arange(6)) for q, k in ((q1, k2), (q2, k1))
        )
        torch.testing.assert_close(loss, want)
        loss.backward()
        want.backward()
        for part in ("base_encoder", "predictor"):
            torch.testing.assert_close(gradients(getattr(ours, part)), gradients(getattr(plain, part)))
        torch.testing.assert_close(ours.state_dict(), plain.state_dict())
        for network in (ours, plain):
            network.base_encoder.body[0].weight.data.mul_(0.9)


def test_moco_v3_has_the_originals_layers() -> None:
    norm = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    projector = {"0.weight", *(f"1.{name}" for name in norm), "3.weight"}
    of_resnet = moco_v3.MoCo_ResNet(Encoder, 5, 7).state_dict()
    of_transformer = moco_v3.MoCo_ViT(transformer, 5, 7).state_dict()

    def within(state: dict[str, Tensor], prefix: str) -> set[str]:
        return {name.removeprefix(prefix) for name in state if name.startswith(prefix)}

    last = {f"4.{name}" for name in norm[2:]}
    for encoder in ("base_encoder", "momentum_encoder"):
        assert within(of_resnet, f"{encoder}.fc.") == projector | last
        assert within(of_transformer, f"{encoder}.head.") == projector | {
            *(f"4.{name}" for name in norm),
            "6.weight",
            *(f"7.{name}" for name in norm[2:]),
        }
    assert within(of_resnet, "predictor.") == projector
    assert within(of_transformer, "predictor.") == projector | last
    assert of_resnet["base_encoder.fc.0.weight"].shape == (7, 9)
    assert of_resnet["predictor.3.weight"].shape == (5, 7)


def test_moco_v3_refuses_an_encoder_without_its_last_layer() -> None:
    with pytest.raises(ValueError, match="MoCo_ViT: the encoder's last layer must be linear and called head; got Enco"):
        moco_v3.MoCo_ViT(Encoder)
    with pytest.raises(ValueError, match="MoCo: the encoder's last layer must be linear and called fc or head; got Id"):
        moco_v3.MoCo(lambda num_classes: nn.Identity())
    model = moco_v3.MoCo(Encoder, 5, 7)
    x = rows(0, 4, 6, dtype=torch.float32)
    with pytest.raises(ValueError, match=r"same shape \(N, D\); got \(4, 5\) and \(3, 5\)"):
        model(x, x[:3], 0.99)
    with pytest.raises(ValueError, match=r"momentum must be a number in \[0, 1\]; got 2.0"):
        model(x, x, 2.0)


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


def test_a_batch_that_does_not_divide_the_queue_goes_on_at_its_beginning() -> None:
    model = moco.MoCo(lambda num_classes: nn.Identity(), 6, 10).double()
    for step in range(3):
        model(rows(0, 4, 6), rows(step, 4, 6))
    last = normalize(rows(2, 4, 6))
    torch.testing.assert_close(model.queue[:, 8:], last[:2].T)
    torch.testing.assert_close(model.queue[:, :2], last[2:].T)
    assert model.queue_ptr == 2


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
