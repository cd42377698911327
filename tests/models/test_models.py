from __future__ import annotations

import pytest
import torch
from torch import nn

from fastssl import models
from fastssl.errors import UserError


def test_unknown_encoder_offers_the_nearest():
    with pytest.raises(UserError, match="did you mean 'resnet18'"):
        models.get("resnet81")


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
