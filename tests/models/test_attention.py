from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from fastssl import models
from fastssl.models.attention import attention_maps, heat


class Known(nn.Module):
    """Stages of known activations, whatever the images are."""

    def __init__(self, *stages: Tensor) -> None:
        super().__init__()
        self.given = stages

    def stages(self, images: Tensor) -> Iterator[Tensor]:
        yield from self.given


def test_maps_are_sums_of_powers_from_zero_to_one() -> None:
    generator = torch.Generator().manual_seed(0)
    stages = [torch.randn(2, 3, 4, 4, generator=generator, dtype=torch.float64) for _ in range(4)]
    found = attention_maps(Known(*stages), torch.zeros(2, 3, 4, 4))
    for power, stage, attention in zip((1, 2, 4, 4), stages, found, strict=True):
        summed = (stage.abs() ** power).sum(1)
        low, high = summed.amin((1, 2), keepdim=True), summed.amax((1, 2), keepdim=True)
        torch.testing.assert_close(attention.double(), (summed - low) / (high - low), rtol=1e-5, atol=1e-6)


def test_maps_are_enlarged_to_the_images_and_constant_ones_are_nothing() -> None:
    (found,) = attention_maps(Known(torch.ones(1, 5, 2, 2)), torch.zeros(1, 3, 8, 6))
    assert torch.equal(found, torch.zeros(1, 8, 6))


@pytest.mark.parametrize(("name", "stages"), [("resnet18", 4), ("alexnet", 5)])
def test_encoders_have_stages_and_the_last_is_their_map(name: str, stages: int) -> None:
    encoder, x = models.get(name)(stem="cifar", width=4).eval(), torch.randn(2, 3, 32, 32)
    *_, last = maps = list(encoder.stages(x))
    assert len(maps) == stages
    assert torch.equal(last, encoder.maps(x))
    found = attention_maps(encoder, x)
    assert [attention.shape for attention in found] == [(2, 32, 32)] * stages
    assert not any(attention.requires_grad for attention in found)


def test_a_network_without_maps_is_refused() -> None:
    with pytest.raises(ValueError, match="a VisionTransformer has no stages of maps"):
        attention_maps(models.get("vit_micro")(width=8, depth=1), torch.zeros(1, 3, 64, 64))


def test_heat_goes_from_grey_over_red_to_white() -> None:
    images = torch.full((1, 3, 1, 4), 0.5)
    drawn = heat(images, torch.tensor([[[0.0, 1 / 3, 2 / 3, 1.0]]]))[0, :, 0].T
    expected = torch.tensor([[0.2, 0.2, 0.2], [0.8, 0.2, 0.2], [0.8, 0.8, 0.2], [0.8, 0.8, 0.8]])
    torch.testing.assert_close(drawn, expected)
