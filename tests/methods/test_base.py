"""What every method has without writing it."""

from __future__ import annotations

from dataclasses import make_dataclass

import pytest
import torch
from torch import nn

from fastssl.data.lab import from_rgb
from fastssl.errors import UserError
from fastssl.methods import Method


def test_images_are_embedded_by_the_last_map_of_the_encoder(build) -> None:
    frames = torch.rand(2, 3, 16, 24)
    for name in ("simclr", "mae"):
        method = build(name).eval()
        found = method.embed(frames)
        assert torch.equal(found, method.encoder.maps(from_rgb(frames)))
        assert found.shape[0] == 2
        assert found.shape[2:] == (4, 6) if name == "mae" else (2, 3)


def test_an_encoder_without_a_map_is_refused() -> None:
    with pytest.raises(UserError, match="Identity"):
        Method(nn.Identity(), make_dataclass("NoSettings", ())()).embed(torch.rand(1, 3, 8, 8))
