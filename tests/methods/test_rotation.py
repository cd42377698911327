from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from fastssl.data import plans
from fastssl.data.views import make_views
from fastssl.methods.rotation import Rotation, RotationConfig


class Corners(nn.Module):
    """Features are the mean values of the four corners, clockwise from the top left: (N, 3, H, W) to (N, 4)."""

    feature_dim = 4

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([x[..., 0, 0], x[..., 0, -1], x[..., -1, -1], x[..., -1, 0]], 2).mean(1)


def test_loss_is_the_cross_entropy_of_equation_3_over_all_turns():
    method = Rotation(Corners(), RotationConfig())
    views = [torch.randn(3, 3, 5, 5, generator=torch.Generator().manual_seed(i)) for i in range(4)]
    weight, bias = method.head.weight.tolist(), method.head.bias.tolist()
    total = 0.0
    for turn, view in enumerate(views):
        for features in method.encoder(view).tolist():
            logits = [sum(a * b for a, b in zip(row, features, strict=True)) + bias[k] for k, row in enumerate(weight)]
            total += math.log(sum(math.exp(z) for z in logits)) - logits[turn]
    assert method(views).item() == pytest.approx(total / 12, rel=1e-5)


def test_the_class_of_a_view_is_its_turn_against_the_clock():
    method = Rotation(Corners(), RotationConfig())
    with torch.no_grad():
        method.head.weight.copy_(torch.eye(4)[[0, 3, 2, 1]])  # where a quarter turn after the other takes the top left
        method.head.bias.zero_()
    image = torch.zeros(2, 3, 16, 16, dtype=torch.uint8)
    image[..., :8, :8] = 255
    views = make_views(image, plans.changed(method.view_plan(16), {"flip": 0.0}), torch.Generator().manual_seed(0))
    method(views)
    assert method.metrics(0.0, 2) == {"pretext_accuracy": 1.0, "chance": 0.25}
    method(views[::-1])
    assert method.metrics(0.0, 2)["pretext_accuracy"] == 0.0


def test_batch_norm_sees_all_turns_at_once(build, views_of):
    method = build("rotation")
    seen: list[int] = []
    method.encoder.bn1.register_forward_hook(lambda _module, inputs, _output: seen.append(len(inputs[0])))
    method(views_of(method, batch=3))
    assert seen == [12]


def test_the_accuracy_is_a_guess_before_training(build, views_of):
    method = build("rotation")
    method(views_of(method, batch=32))
    metrics = method.metrics(1.0, 32)
    assert metrics["chance"] == 0.25
    assert 0.0 < metrics["pretext_accuracy"] < 0.5


def test_pictures_show_what_each_stage_attends_to(build, views_of):
    method = build("rotation").eval()
    views = views_of(method)
    pictures = method.pictures(views)
    assert list(pictures) == ["image", "stage 1", "stage 2", "stage 3", "stage 4"]
    assert torch.equal(pictures["image"], views[0])
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (plans.IMAGENET_MEAN, plans.IMAGENET_STD))
    visible = [picture * std + mean for picture in pictures.values()]
    assert all(bool((picture > -1e-5).all() and (picture < 1 + 1e-5).all()) for picture in visible)
    assert not torch.equal(visible[1], visible[4])
    assert Rotation(Corners(), RotationConfig()).pictures(views) == {}
