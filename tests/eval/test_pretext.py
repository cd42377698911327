from __future__ import annotations

from dataclasses import make_dataclass

import pytest
import torch
from labelled import stripes
from torch import Tensor, nn

from fastssl.data import plans
from fastssl.data.plans import ViewPlan
from fastssl.eval import Pretext, pretext_score
from fastssl.methods import Method
from fastssl.methods.rotation import Rotation, RotationConfig


class Knows(Method):
    """Takes each batch's brightest image for its answer, with noise of its own; batch norm must stay as it is."""

    def __init__(self) -> None:
        super().__init__(nn.BatchNorm2d(3), make_dataclass("NoSettings", ())())

    def forward(self, views: list[Tensor]) -> Tensor:
        bright = self.encoder(views[0]).mean(dim=(1, 2, 3))
        self.note(pretext_accuracy=(bright > 0).float().mean(), chance=0.5, drawn=torch.rand(()))
        return bright.mean()


PLAN = ViewPlan(size=16)


def test_means_weigh_images_and_not_batches() -> None:
    data = stripes(10, 0)
    whole, split = (pretext_score(Knows(), data, PLAN, batch_size=size) for size in (10, 4))
    assert split.loss == pytest.approx(whole.loss, rel=1e-5)
    assert split.accuracy == pytest.approx(whole.accuracy)
    assert (whole.chance, whole.images) == (0.5, 10)


def test_it_changes_nothing_and_is_the_same_again() -> None:
    method, before = Knows(), torch.get_rng_state()
    first, again = (pretext_score(method, stripes(6, 0), PLAN, seed=3) for _ in range(2))
    assert first == again
    assert torch.equal(torch.get_rng_state(), before)
    assert method.training
    assert method.encoder.num_batches_tracked == 0


def test_a_rest_of_one_image_joins_the_batch_before() -> None:
    sizes: list[int] = []

    class Counts(Knows):
        def forward(self, views: list[Tensor]) -> Tensor:
            sizes.append(len(views[0]))
            return super().forward(views)

    pretext_score(Counts(), stripes(9, 0), PLAN, batch_size=4)
    assert sizes == [4, 5]
    sizes.clear()
    pretext_score(Counts(), stripes(1, 0), PLAN, batch_size=4)
    assert sizes == [1]


def test_the_accuracy_of_rotation_is_of_all_turns() -> None:
    class Corners(nn.Module):
        feature_dim = 4

        def forward(self, x: Tensor) -> Tensor:
            return torch.stack([x[..., 0, 0], x[..., 0, -1], x[..., -1, -1], x[..., -1, 0]], 2).mean(1)

    method = Rotation(Corners(), RotationConfig())
    with torch.no_grad():
        method.head.weight.copy_(torch.eye(4)[[0, 3, 2, 1]])
        method.head.bias.zero_()
    data = stripes(8, 0)
    data.images[:] = 0
    data.images[:, :, :8, :8] = 255
    plan = plans.changed(plans.rotation(16), {"flip": 0.0, "crop_scale": (1.0, 1.0)})
    found = pretext_score(method, data, plan, batch_size=3)
    assert (found.accuracy, found.chance) == (1.0, 0.25)


def test_a_task_without_classes_has_a_loss_alone() -> None:
    class Plain(Knows):
        def forward(self, views: list[Tensor]) -> Tensor:
            return views[0].square().mean()

    found = pretext_score(Plain(), stripes(4, 0), PLAN)
    assert (found.accuracy, found.chance, found.error) == (None, None, None)
    assert found.loss > 0
    assert found.in_words() == f"loss {found.loss:.3f}"


def test_in_words() -> None:
    assert Pretext(0.5, 0.8, 0.25, None, None, 4).in_words() == "loss 0.500, 80.0% solved (chance 25.0%)"
    narrow = Pretext(0.5, 0.2, 0.1, None, None, 4, constant_loss=0.75).in_words()
    assert narrow == "loss 0.500 (of a constant answer 0.750), 20.0% solved (chance 10.0%)"
    told = Pretext(0.5, None, None, 0.1234, 0.2, 4).in_words()
    assert told == "loss 0.500, error 0.123 (of a constant answer 0.2)"
