from __future__ import annotations

import pytest
import torch
from torch import nn

from fastssl import models
from fastssl.errors import UserError


def test_unknown_encoder_offers_the_nearest():
    with pytest.raises(UserError, match="did you mean 'resnet18'"):
        models.get("resnet81")


def test_options_are_the_encoders_own_but_for_what_is_given():
    assert models.options("resnet18") == {"stem": "imagenet", "width": 64, "max_stride": 32, "channels": 3}
    given = models.options("resnet18", image_size=32, width=8, stem=None)
    assert given == {"stem": "imagenet", "width": 8, "max_stride": 32, "channels": 3}
    given = models.options("vit_tiny", image_size=32, patch_size=4)
    assert (given["width"], given["patch_size"], given["image_size"]) == (192, 4, 32)
    assert models.get("vit_tiny")(**given | {"depth": 1}).native_grid == (8, 8)


def test_an_option_of_another_encoder_is_named():
    with pytest.raises(UserError, match=r"no patch_size, .* 4; its options are stem, width, max_stride, channels"):
        models.options("resnet18", patch_size=4)
    with pytest.raises(UserError, match="vit_tiny has no stem, which was set to 'cifar'"):
        models.options("vit_tiny", stem="cifar")


def test_feature_dim_wants_an_integer():
    class Bare(nn.Module):
        pass

    with pytest.raises(TypeError, match="Bare has None"):
        models.feature_dim(Bare())
    bare = Bare()
    bare.feature_dim = torch.tensor(3)
    with pytest.raises(TypeError, match="tensor"):
        models.feature_dim(bare)
    bare.feature_dim = 3
    assert models.feature_dim(bare) == 3


def test_the_side_of_a_map_is_found_and_the_encoder_stays_as_it_is():
    encoder = models.get("resnet18")(width=4)
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    assert [models.map_side(encoder, size) for size in (32, 64, 100, 224)] == [1, 2, 4, 7]
    assert encoder.training
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())
    assert models.map_side(models.get("alexnet")(width=4, channels=2), 224) == 13
    assert models.maps(encoder.eval(), torch.zeros(2, 3, 64, 64)).shape == (2, 32, 2, 2)


def test_an_encoder_without_a_map_is_named():
    with pytest.raises(UserError, match="a map, and a SplitEncoder has none: take a resnet"):
        models.map_side(models.get("alexnet_split")(width=4), 64)


@pytest.mark.parametrize(
    ("name", "stem", "stride"),
    [("resnet18", "imagenet", 32), ("resnet18", "cifar", 8), ("alexnet", "imagenet", 18.3), ("alexnet", "cifar", 4.1)],
)
def test_the_stride_of_a_map(name, stem, stride):
    assert models.map_stride(models.get(name)(stem=stem, width=2)) == pytest.approx(stride, rel=0.01)
