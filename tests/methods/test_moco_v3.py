from __future__ import annotations

import math

import pytest
import torch

from fastssl import models
from fastssl.errors import UserError
from fastssl.methods.moco_v3 import MoCoV3, MoCoV3Config
from fastssl.schedule import Schedule


def unit(row: list[float]) -> list[float]:
    length = math.hypot(*row)
    return [x / length for x in row]


def test_the_loss_is_algorithm_1(build, views_of):
    method = build("moco_v3", temperature=0.3).double()
    views = [view.double() for view in views_of(method)]
    queries = [[unit(row) for row in method.predictor(method.student(view)).tolist()] for view in views]
    keys = [[unit(row) for row in method.teacher(view).tolist()] for view in views]
    total = 0.0
    for q, k in ((queries[0], keys[1]), (queries[1], keys[0])):
        for i, row in enumerate(q):
            scores = [sum(a * b for a, b in zip(row, key, strict=True)) / 0.3 for key in k]
            total += (math.log(sum(map(math.exp, scores))) - scores[i]) / len(q)
    assert method(views).item() == pytest.approx(2 * 0.3 * total, rel=1e-6)


def test_the_patch_embedding_is_left_as_drawn(build):
    frozen = {name for name, p in build("moco_v3").encoder.named_parameters() if not p.requires_grad}
    assert frozen == {"pos_embed", "patch_embed.proj.weight", "patch_embed.proj.bias"}
    trained = build("moco_v3", train_patches=True).encoder.named_parameters()
    assert {name for name, p in trained if not p.requires_grad} == {"pos_embed"}


def test_of_a_resnet_all_is_trained():
    method = MoCoV3(models.get("resnet18")(width=4), MoCoV3Config())
    assert all(p.requires_grad for p in method.encoder.parameters())


def test_the_momentum_encoder_follows_without_the_predictor(build, views_of):
    method = build("moco_v3", momentum=Schedule(0.5))
    assert len(method.teacher.module) == 2
    method(views_of(method)).backward()
    assert all(p.grad is None for p in method.teacher.parameters())
    before = method.teacher.module[1].layers[0].weight.clone()
    with torch.no_grad():
        method.projector.layers[0].weight.add_(1.0)
    method.after_step(0.5)
    torch.testing.assert_close(method.teacher.module[1].layers[0].weight, before + 0.5)


def test_pictures_are_where_the_class_token_of_the_encoder_looks(build, views_of):
    method = build("moco_v3").eval()
    views = views_of(method, batch=2)
    pictures = method.pictures(views)
    assert list(pictures) == ["image", "head 1"]
    assert torch.equal(pictures["image"], views[0])
    maps = method.encoder.class_attention(views[0])
    grey = pictures["head 1"][:, 0, ::4, ::4] * 0.229 + 0.485
    torch.testing.assert_close(grey, (maps / maps.amax((2, 3), keepdim=True))[:, 0])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": -0.2}, "temperature of MoCo v3 must be a finite number above 0; got -0.2"),
        ({"projector_layers": 0}, "projector_layers of MoCo v3 must be 1 or more; got 0"),
        ({"momentum": Schedule(2.0)}, "momentum of MoCo v3 must be from 0 to 1; got 2.0"),
    ],
)
def test_refuses_settings_that_cannot_be(settings, message):
    with pytest.raises(UserError, match=message):
        MoCoV3Config(**settings)
