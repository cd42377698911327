from __future__ import annotations

import copy
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from labelled import splits, stripes
from torch import nn

from fastssl import models
from fastssl.data.loader import Schedule
from fastssl.data.views import make_views
from fastssl.errors import UserError
from fastssl.eval import FinetuneConfig, finetune
from fastssl.optim import OptimConfig

QUICK = FinetuneConfig(epochs=3, least_steps=1, batch_size=16)


def network(name: str = "resnet18") -> nn.Module:
    torch.manual_seed(0)
    options: dict[str, dict[str, Any]] = {
        "resnet18": {"stem": "cifar", "width": 4},
        "alexnet": {"stem": "cifar", "width": 4},
        "vit_micro": {"patch_size": 4, "width": 16, "depth": 2, "image_size": 16},
    }
    return models.get(name)(**options[name])


def tune(encoder: nn.Module, **changes: Any) -> Any:
    data = splits()
    return finetune(encoder, data.train, data.test or data.train, **{"size": 16, "config": QUICK, **changes})


@pytest.mark.parametrize("name", ["resnet18", "alexnet", "vit_micro"])
def test_it_learns_what_labels_tell(name: str) -> None:
    config = replace(QUICK, epochs=20, optim=replace(QUICK.optim, lr=5e-3), layer_decay=1.0)
    found = tune(network(name), config=config)
    assert found.accuracy > 0.85
    assert found.steps == 20 * 2
    assert found.parameters == sum(p.numel() for p in network(name).parameters() if p.requires_grad)


@pytest.mark.parametrize(("name", "tuned"), [("resnet18", 2), ("vit_micro", 0.5), ("vit_micro", 1), ("vit_micro", 0)])
def test_what_is_not_tuned_stays_to_the_bit(name: str, tuned: float) -> None:
    encoder = network(name)
    before = copy.deepcopy(encoder.state_dict())
    found = tune(encoder, tuned=tuned)
    assert all(torch.equal(value, before[key]) for key, value in encoder.state_dict().items())
    names = found.classifier.layers.tuned(tuned)
    after = found.classifier.encoder.state_dict()
    moved = {key for key, value in after.items() if not torch.equal(value, before[key])}
    parameters = {key for key, _ in encoder.named_parameters()}
    assert moved & parameters == names
    owners = {key.rpartition(".")[0] for key in names}
    assert {key.rpartition(".")[0] for key in moved} <= owners  # the running statistics of frozen parts stay too
    assert found.parameters == sum(after[key].numel() for key in names)


def test_the_first_step_is_that_of_smoothed_labels() -> None:
    """By hand: SGD on the views of the one batch that there is. The head begins at zero, so it alone moves."""
    encoder, data = network("vit_micro"), splits()
    optim = OptimConfig(name="sgd", lr=0.5, weight_decay=0.0, momentum=0.0, warmup_epochs=0)
    config = FinetuneConfig(epochs=1, least_steps=1, batch_size=40, layer_decay=0.5, optim=optim)
    found = finetune(encoder, data.train, data.train, size=16, config=config, seed=7)

    schedule = Schedule(40, 40, 7)
    ((step, chosen),) = schedule.chosen(0)
    (view,) = make_views(data.train.images[chosen], config.view_plan(16), schedule.generator(0, step))
    targets = 0.9 * F.one_hot(data.train.labels[chosen], 2) + 0.1 / 2
    gradient = (0.5 - targets).T @ encoder(view) / len(view)
    torch.testing.assert_close(found.classifier.head.weight, -0.5 * gradient, rtol=1e-4, atol=1e-6)
    assert found.classifier.scales(0.5)["encoder.blocks.1.mlp.fc1.weight"] == 0.5


def test_transformers_have_lower_rates_towards_the_input_unless_told_otherwise() -> None:
    assert QUICK.decay_for(network("vit_micro")) == 0.75
    assert QUICK.decay_for(network("resnet18")) == 1.0
    assert replace(QUICK, layer_decay=0.9).decay_for(network("vit_micro")) == 0.9


def test_few_images_are_seen_more_often() -> None:
    data = splits()
    few = data.train.subset(torch.arange(6))
    found = finetune(network(), few, few, size=16, config=replace(QUICK, least_steps=11))
    assert found.steps == 11


def test_it_is_the_same_again_and_the_seed_decides() -> None:
    first, again, other = (tune(network(), seed=seed).classifier.state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(value, again[key]) for key, value in first.items())
    assert any(not torch.equal(value, other[key]) for key, value in first.items())


def test_stopped_it_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    whole = tune(network(), seed=1)
    state = tmp_path / "tuning.pt"

    def stop(done: int, total: int) -> None:
        assert total == 6
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tune(network(), seed=1, checkpoint=state, watch=stop)
    steps: list[int] = []
    resumed = tune(network(), seed=1, checkpoint=state, watch=lambda done, total: steps.append(done))
    assert steps == [5, 6]
    assert not state.exists()
    for key, value in whole.classifier.state_dict().items():
        assert torch.equal(value, resumed.classifier.state_dict()[key])
    assert resumed.accuracy == whole.accuracy


def test_the_state_of_another_training_is_not_taken(tmp_path: Path) -> None:
    state = tmp_path / "tuning.pt"

    def stop(done: int, total: int) -> None:
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tune(network(), seed=1, checkpoint=state, watch=stop)
    steps: list[int] = []
    tune(network(), seed=2, checkpoint=state, watch=lambda done, total: steps.append(done))
    assert steps == [1, 2, 3, 4, 5, 6]


def test_bfloat16_trains_weights_that_stay_float32() -> None:
    found = tune(network("vit_micro"), config=replace(QUICK, precision="bfloat16"))
    assert {value.dtype for value in found.classifier.parameters()} == {torch.float32}
    assert math.isfinite(found.classifier.head.weight.sum().item())


def test_refuses_what_cannot_be() -> None:
    data = splits()
    bare = replace(stripes(8, 2), labels=None, classes=())
    with pytest.raises(UserError, match="stripes has no labels to fine-tune with"):
        finetune(network(), bare, data.train, size=16)
    with pytest.raises(UserError, match="stripes has no labels to score"):
        finetune(network(), data.train, bare, size=16)
    with pytest.raises(UserError, match="tune 0, 1 to 8 of them, or all; got 9"):
        tune(network(), tuned=9)
    with pytest.raises(UserError, match="fine-tuning diverged: the loss is "):
        tune(network(), config=replace(QUICK, epochs=50, optim=OptimConfig(lr=1e6, warmup_epochs=0)))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epochs": 0}, "epochs .* got 0"),
        ({"batch_size": 1}, "batch_size .* got 1"),
        ({"layer_decay": 0.0}, "layer_decay .* got 0"),
        ({"label_smoothing": 1.0}, "label_smoothing .* got 1"),
        ({"crop": 0.0}, "crop .* got 0"),
    ],
)
def test_refuses_settings_out_of_bounds(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        FinetuneConfig(**settings)
