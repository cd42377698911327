from __future__ import annotations

from typing import Any

import pytest
from torch import nn

from fastssl import models
from fastssl.errors import UserError
from fastssl.models.depth import Layers, layers

SMALL: dict[str, dict[str, Any]] = {
    "resnet18": {"width": 2},
    "resnet50": {"width": 2},
    "alexnet": {"width": 2},
    "resnet18_split": {"width": 4},
    "alexnet_split": {"width": 4},
    "vit_micro": {"width": 8, "depth": 3, "patch_size": 8, "image_size": 16},
}


def of(name: str) -> tuple[nn.Module, Layers]:
    encoder = models.get(name)(**SMALL[name])
    return encoder, layers(encoder)


BLOCKS = {"resnet18": 8, "resnet50": 16, "alexnet": 5, "resnet18_split": 8, "alexnet_split": 5, "vit_micro": 3}


@pytest.mark.parametrize(("name", "blocks"), BLOCKS.items())
def test_every_parameter_is_in_one_layer(name: str, blocks: int) -> None:
    encoder, found = of(name)
    names = [*found.first, *(name for block in found.blocks for name in block), *found.last]
    assert sorted(names) == sorted(name for name, _ in encoder.named_parameters())
    assert len(found.blocks) == blocks
    assert found.tuned("all") == set(names)


def test_the_layers_of_each_kind() -> None:
    _, vit = of("vit_micro")
    assert vit.first == ("cls_token", "pos_embed", "patch_embed.proj.weight", "patch_embed.proj.bias")
    assert vit.last == ("norm.weight", "norm.bias")
    assert vit.blocks[1][0] == "blocks.1.norm1.weight"
    _, resnet = of("resnet18")
    assert resnet.first == ("conv1.weight", "bn1.weight", "bn1.bias")
    assert resnet.blocks[-1][0] == "layer4.1.conv1.weight"
    assert resnet.last == resnet.half == ()
    _, alexnet = of("alexnet")
    assert alexnet.first == ()
    assert set(alexnet.blocks[1]) == {"conv2.weight", "bn2.weight", "bn2.bias"}
    _, split = of("resnet18_split")  # a block is that of both halves
    stem = ("conv1.weight", "bn1.weight", "bn1.bias")
    assert split.first == (*(f"lightness.{name}" for name in stem), *(f"color.{name}" for name in stem))
    assert {"lightness.layer4.1.conv1.weight", "color.layer4.1.conv1.weight"} <= set(split.blocks[-1])
    assert split.last == ()


def test_what_a_number_of_blocks_tunes() -> None:
    _, vit = of("vit_micro")
    assert vit.tuned(0) == frozenset()
    assert vit.tuned(1) == {*vit.blocks[2], *vit.last}
    assert vit.tuned(2) == {*vit.blocks[1], *vit.blocks[2], *vit.last}
    half = vit.tuned(0.5)
    assert half < vit.tuned(1)
    assert {name.split(".")[2] for name in half if name.startswith("blocks.2")} == {"norm2", "mlp"}
    assert vit.choices() == [0, 0.5, 1, 2, "all"]
    assert of("resnet18")[1].choices() == [0, 1, 2, 4, 8, "all"]


@pytest.mark.parametrize("how_much", [4, -1, 1.5])
def test_refuses_blocks_that_there_are_not(how_much: float) -> None:
    told = rf"has 3 blocks: tune 0, 0.5 for the MLP of its last, 1 to 3 of them, or all; got {how_much}"
    with pytest.raises(UserError, match=told):
        of("vit_micro")[1].tuned(how_much)
    with pytest.raises(UserError, match=r"has 8 blocks: tune 0, 1 to 8 of them, or all; got 0.5"):
        of("resnet18")[1].tuned(0.5)


def test_rates_fall_by_a_factor_from_block_to_block() -> None:
    scales = of("vit_micro")[1].scales(0.5)
    found = [scales[name] for name in ("norm.bias", "blocks.2.mlp.fc1.weight", "blocks.0.norm1.bias", "cls_token")]
    assert found == [1, 0.5, 0.125, 0.0625]
    assert set(of("resnet18")[1].scales(1.0).values()) == {1.0}


def test_an_encoder_that_tells_no_blocks_has_its_parts() -> None:
    encoder = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    found = layers(encoder)
    assert found.blocks == (("0.weight", "0.bias"), ("2.weight", "2.bias"))
    assert found.first == found.last == found.half == ()
