from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from fastssl.models.decoders import ChannelwiseLinear, ConvDecoder, Discriminator, PixelHead


def kinds(module: Any) -> list[type]:
    return [type(step) for step in module.layers]


def test_channelwise_linear_is_a_matrix_for_each_channel() -> None:
    layer, maps = ChannelwiseLinear(3, 4).double(), torch.randn(2, 3, 4, 4, dtype=torch.float64)
    layer.bias.data.normal_()
    spread = torch.empty(2, 3, 16, dtype=torch.float64)
    for n in range(2):
        for c in range(3):
            spread[n, c] = layer.weight[c] @ maps[n, c].flatten() + layer.bias[c, 0]
    expected = layer.mix(spread.view(2, 3, 4, 4))
    torch.testing.assert_close(layer(maps), expected)


def test_channelwise_linear_carries_a_corner_to_all_the_map() -> None:
    layer = ChannelwiseLinear(2, 3)
    maps = torch.zeros(1, 2, 3, 3, requires_grad=True)
    layer(maps + 0.1)[0, :, 2, 2].sum().backward()
    assert maps.grad is not None
    assert maps.grad[0, :, 0, 0].any()


def test_channelwise_linear_under_autocast() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        assert ChannelwiseLinear(2, 3)(torch.randn(4, 2, 3, 3).bfloat16()).isfinite().all()


@pytest.mark.parametrize("shape", [(2, 3, 4, 4), (2, 2, 4, 3), (2, 2, 3, 4), (2, 4, 4)])
def test_channelwise_linear_refuses_other_maps(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"maps must be \(N, 2, 4, 4\); got"):
        ChannelwiseLinear(2, 4)(torch.zeros(shape))


@pytest.mark.parametrize("doublings", [1, 2, 5])
def test_each_doubling_doubles(doublings: int) -> None:
    decoder = ConvDecoder(8, 3, doublings=doublings, width=64)
    assert decoder(torch.randn(2, 8, 3, 2)).shape == (2, 3, 3 * 2**doublings, 2 * 2**doublings)
    channels = [step.out_channels for step in decoder.layers if isinstance(step, nn.ConvTranspose2d)]
    assert channels == [*[64, 32, 16, 16][: doublings - 1], 3]
    assert kinds(decoder)[-1] is nn.ConvTranspose2d


def test_a_size_is_met_whatever_the_map() -> None:
    decoder = ConvDecoder(8, 3, doublings=2, width=16).eval()
    maps = torch.randn(2, 8, 7, 7)
    assert decoder(maps, (32, 30)).shape == (2, 3, 32, 30)
    assert torch.equal(decoder(maps, (28, 28)), decoder(maps))


@pytest.mark.parametrize("size", [8, 24, 31, 64])
def test_a_logit_an_image(size: int) -> None:
    judge = Discriminator(size, width=4)
    assert judge(torch.randn(3, 3, size, size)).shape == (3,)
    norms = [step for step in judge.layers if isinstance(step, nn.BatchNorm2d)]
    convolutions = [step for step in judge.layers if isinstance(step, nn.Conv2d)]
    assert len(norms) == len(convolutions) - 2
    assert [c.out_channels for c in convolutions[:-1]] == [4, 8, 16, 32, 32][: int(math.log2(size)) - 2]
    assert convolutions[-1].kernel_size[0] in range(4, 8)


def test_the_judge_learns_to_tell_noise_from_gradients() -> None:
    torch.manual_seed(0)
    judge = Discriminator(16, channels=1, width=8)
    optimizer = torch.optim.Adam(judge.parameters(), lr=2e-3, betas=(0.5, 0.999))
    ramp = torch.linspace(-1, 1, 16).expand(16, 1, 16, 16)
    truth = torch.cat([torch.ones(16), torch.zeros(16)])
    for _ in range(20):
        logits = judge(torch.cat([ramp * torch.rand(16, 1, 1, 1), torch.randn(16, 1, 16, 16)]))
        loss = nn.functional.binary_cross_entropy_with_logits(logits, truth)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    judge.eval()
    assert judge(ramp * torch.rand(16, 1, 1, 1)).min() > judge(torch.randn(16, 1, 16, 16)).max()


@pytest.mark.parametrize("kind", [ConvDecoder, Discriminator, ChannelwiseLinear, PixelHead])
def test_every_parameter_gets_a_gradient(kind: type[nn.Module]) -> None:
    settings = {
        ConvDecoder: dict(in_channels=8, out_channels=3, doublings=2),
        Discriminator: dict(size=16, width=4),
        ChannelwiseLinear: dict(channels=8, side=4),
        PixelHead: dict(in_channels=8, out_channels=3, doublings=1),
    }
    module = kind(**settings[kind])
    x = torch.randn(4, 3, 16, 16) if isinstance(module, Discriminator) else torch.randn(4, 8, 4, 4)
    module(x).square().sum().backward()
    assert all(p.grad is not None and bool(p.grad.any()) for p in module.parameters())


def test_what_cannot_be_is_named() -> None:
    with pytest.raises(ValueError, match="doublings=0"):
        ConvDecoder(8, 3, doublings=0)
    with pytest.raises(ValueError, match="doublings=-1"):
        PixelHead(8, 3, doublings=-1)
    with pytest.raises(ValueError, match="got size=7"):
        Discriminator(7)
    with pytest.raises(ValueError, match="got 0 and 4"):
        ChannelwiseLinear(0, 4)
    with pytest.raises(ValueError, match="discriminator: images must have 16 x 16 pixels; got 16 x 8"):
        Discriminator(16)(torch.zeros(2, 3, 16, 8))


@pytest.mark.parametrize("doublings", [0, 1, 3])
def test_a_pixel_head_answers_for_each_place(doublings: int) -> None:
    head = PixelHead(8, 5, doublings=doublings, width=6)
    assert head(torch.randn(2, 8, 3, 4)).shape == (2, 5, 3 * 2**doublings, 4 * 2**doublings)
    ups = [step for step in head.layers if isinstance(step, nn.ConvTranspose2d)]
    assert len(ups) == doublings
    assert isinstance(head.layers[-1], nn.Conv2d)
    assert head.layers[-1].kernel_size == (1, 1)
