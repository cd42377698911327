from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from fastssl.data.views import make_views
from fastssl.errors import UserError
from fastssl.methods.dino import DINO, DINOConfig
from fastssl.schedule import Schedule
from fastssl.train import config as configs

SMALL = {"prototypes": 7, "hidden_dim": 6, "bottleneck_dim": 5}


class Means(nn.Module):
    """An encoder that returns the mean of each channel: (N, 3, H, W) to (N, 3)."""

    feature_dim = 3

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[int, int]] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append((len(x), x.shape[-1]))
        return x.mean((2, 3))


def crops(batch: int = 3) -> list[Tensor]:
    """Two of 8 pixels and three of 4, of any brightness."""
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(batch, 3, size, size, generator=generator) + torch.randn(batch, 3, 1, 1, generator=generator)
        for size in (8, 8, 4, 4, 4)
    ]


def tiny(**settings) -> DINO:
    torch.manual_seed(0)
    return DINO(Means(), DINOConfig(**SMALL | settings))


def softmax(row: list[float], temp: float) -> list[float]:
    powers = [math.exp(x / temp) for x in row]
    return [p / sum(powers) for p in powers]


def test_the_loss_is_algorithm_1():
    method = tiny(student_temp=0.2, teacher_temp=Schedule(0.1)).double()
    views = [view.double() for view in crops()]
    method.loss.center.copy_(torch.linspace(-0.1, 0.2, 7))
    center = method.loss.center.tolist()
    student = [method.head(view.mean((2, 3))).tolist() for view in views]
    teacher = [method.teacher(view).tolist() for view in views[:2]]
    pairs = []
    for t, said in enumerate(teacher):
        for s, guessed in enumerate(student):
            if s != t:
                for p_row, q_row in zip(said, guessed, strict=True):
                    p = softmax([x - c for x, c in zip(p_row, center, strict=True)], 0.1)
                    q = softmax(q_row, 0.2)
                    pairs.append(-sum(a * math.log(b) for a, b in zip(p, q, strict=True)))
    assert len(pairs) == 2 * 4 * 3
    assert method(views).item() == pytest.approx(sum(pairs) / len(pairs), rel=1e-6)


def test_the_teacher_sees_large_crops_and_crops_of_a_size_go_together():
    method = tiny()
    method(crops())
    assert method.teacher.module[0].seen == [(6, 8)]
    assert method.encoder.seen == [(6, 8), (9, 4)]


@pytest.mark.parametrize("count", [2, 3, 5])
def test_any_number_of_small_crops(count):
    assert math.isfinite(tiny()(crops()[:count]).item())


def test_the_teacher_gets_no_gradient_follows_and_is_kept():
    method = tiny(momentum=Schedule(0.75))
    method.before_step(9, total=10, per_epoch=1)
    method(crops()).backward()
    assert all(p.grad is None and not p.requires_grad for p in method.teacher.parameters())
    before = [p.clone() for p in method.teacher.parameters()]
    with torch.no_grad():
        for p in method.head.parameters():
            p.add_(1.0)
    method.after_step(0.5)
    for was, now in zip(before, method.teacher.parameters(), strict=True):
        torch.testing.assert_close(now, 0.75 * was + 0.25 * (was + 1))
    assert method.kept is method.teacher.module[0]


def test_the_last_layer_is_frozen_in_the_first_epoch():
    method = tiny()
    trained = []
    for step in (0, 2, 3, 4):
        method.before_step(step, total=9, per_epoch=3)
        method.zero_grad()
        method(crops()).backward()
        trained.append(method.head.prototypes.weight.grad is not None)
        assert method.head.mlp[0].weight.grad.any()
    assert trained == [False, False, True, True]


def test_the_temperature_of_the_teacher_is_that_of_the_step():
    method = tiny(teacher_temp=Schedule(0.04, 0.4, epochs=2, shape="linear")).eval()  # the center stays
    losses = []
    for step in (0, 4, 8):
        method.before_step(step, total=8, per_epoch=4)
        losses.append(method(crops()).item())
    constant = [tiny(teacher_temp=Schedule(temp)).eval()(crops()).item() for temp in (0.04, 0.22, 0.4)]
    assert losses == pytest.approx(constant, rel=1e-6)
    assert len(set(losses)) == 3


def test_the_center_follows_the_teacher_in_training():
    method = tiny()
    said = torch.stack([method.teacher(view) for view in crops()[:2]])
    method(crops())
    torch.testing.assert_close(method.loss.center, 0.1 * said.mean((0, 1)))


def test_sinkhorn_takes_the_place_of_the_center():
    method = tiny(centering="sinkhorn")
    method(crops())
    assert not method.loss.center.any()


def test_signs_of_a_collapse_are_noted_when_it_is_watched():
    method = tiny(prototypes=64)
    method.before_step(0, total=9, per_epoch=3)
    method(crops(8))
    assert method.metrics(0.0, 8) == {}
    method.watched = True
    told = method.loss.told(torch.stack([method.teacher(view) for view in crops(8)[:2]]), teacher_temp=0.04)
    loss = method(crops(8))
    signs = method.metrics(0.0, 8)
    each = -(told * told.log()).sum(-1).mean().item()
    mean = told.mean((0, 1))
    assert signs["teacher_entropy"] == pytest.approx(each, rel=1e-4)
    assert signs["teacher_kl"] == pytest.approx(loss.item() - each, rel=1e-4)
    assert signs["teacher_information"] == pytest.approx(-(mean * mean.log()).sum().item() - each, rel=1e-3, abs=1e-6)
    method.watched = False
    method.before_step(1, total=9, per_epoch=3)
    method(crops(8))
    assert method.metrics(0.0, 8) == {}


def test_pictures_are_where_the_class_token_of_the_teacher_looks(build, views_of):
    method = build("dino").eval()
    views = views_of(method, batch=2)
    pictures = method.pictures(views)
    assert list(pictures) == ["image", "head 1"]
    maps = method.kept.class_attention(views[0])
    assert maps.shape == (2, 1, 4, 4)
    drawn = pictures["head 1"] * torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    drawn = drawn + torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
    largest = maps.amax((2, 3), keepdim=True)
    torch.testing.assert_close(drawn[:, :, ::4, ::4], (maps / largest).expand(-1, 3, -1, -1))
    assert drawn.amax((1, 2, 3)).tolist() == pytest.approx([1.0, 1.0])


def test_a_resnet_has_no_attention_to_draw(views_of):
    method = tiny()
    assert method.pictures(crops()) == {}


def test_a_run_may_have_another_encoder_and_other_crops():
    own = configs.recipe("dino")
    assert (own.encoder, own.pool, own.optim.name, own.optim.final_weight_decay) == ("vit_micro", "token", "adamw", 0.4)
    resnet = configs.from_dict({"method": "dino", "encoder": "resnet18", "stem": "cifar"})
    assert (resnet.pool, resnet.encoder_options()) == (
        None,
        {"stem": "cifar", "width": 64, "max_stride": 32, "channels": 3},
    )
    assert configs.from_dict({"method": "dino", "encoder": "vit_tiny"}).pool == "token"
    few = configs.from_dict({"method": "dino", "plan": {"local": {"views": 3}}})
    assert few.view_plan().total == 5
    assert replace(few, plan={}, views="byol").view_plan().total == 2
    with pytest.raises(UserError, match="the method 'dino' takes 2 or more: --views may be byol"):
        replace(few, plan={}, views="eval")


def test_its_schedules_are_set_by_name():
    config = configs.from_dict(
        {"method": "dino", "dino": {"teacher_temp": {"end": "5e-2"}, "momentum": {"start": 0.9}}}
    )
    assert config.method_config.teacher_temp == Schedule(0.04, 0.05, epochs=30, shape="linear")
    assert config.method_config.momentum == Schedule(0.9, 1.0)
    assert configs.from_dict(configs.to_dict(config)) == config
    assert configs.command(config) == "fastssl pretrain dino --dino.momentum.start 0.9 --dino.teacher_temp.end 0.05"
    for given, message in (
        ({"teacher_temp": {"last": 1}}, "unknown setting 'dino.teacher_temp.last'"),
        ({"teacher_temp": {"end": "warm"}}, "dino.teacher_temp.end must be of type float or null; got 'warm'"),
        ({"teacher_temp": 0.04}, "dino.teacher_temp needs settings of the form name: value; got 0.04"),
        ({"teacher_temp": {"shape": "cosin"}}, "unknown shape of a schedule 'cosin'"),
    ):
        with pytest.raises(UserError, match=message):
            configs.from_dict({"method": "dino", "dino": given})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"prototypes": 0}, "prototypes of DINO must be 1 or more; got 0"),
        ({"student_temp": 0.0}, "student_temp of DINO must be a finite number above 0; got 0.0"),
        ({"teacher_temp": Schedule(0.0)}, r"teacher_temp of DINO must be 0\.001 or more; got 0.0"),
        ({"momentum": Schedule(-0.1)}, "momentum of DINO must be from 0 to 1; got -0.1"),
        ({"train_prototypes": Schedule(2.0)}, "train_prototypes of DINO must be from 0 to 1; got 2.0"),
        ({"center_momentum": 1.1}, "center_momentum of DINO must be from 0 to 1; got 1.1"),
        ({"centering": "centre"}, "unknown centering of DINO 'centre': did you mean 'center'"),
    ],
)
def test_refuses_settings_that_cannot_be(settings, message):
    with pytest.raises(UserError, match=message):
        DINOConfig(**settings)


def test_views_of_the_plan_are_what_it_takes(build, views_of):
    method = build("dino")
    assert [view.shape[-1] for view in views_of(method)] == [16, 16, *[8] * 8]
    assert [
        view.shape[-1] for view in make_views(torch.zeros(2, 3, 64, 64).byte(), method.view_plan(64), torch.Generator())
    ] == [64, 64, *[24] * 8]
