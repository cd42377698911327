"""The encoder of waveforms: frames of 10 ms, contexts that know nothing of what comes."""

from __future__ import annotations

import pytest
import torch

from fastssl import models
from fastssl.models.audio import WaveGRU


def waves(count: int, samples: int) -> torch.Tensor:
    return torch.rand(count, samples, generator=torch.Generator().manual_seed(0)) - 0.5


def test_the_published_network() -> None:
    encoder = models.get("wave_gru")()
    assert (encoder.width, encoder.feature_dim, encoder.least) == (512, 256, 160)
    assert [(conv.kernel_size[0], conv.stride[0]) for conv in encoder.convolutions] == [
        *((10, 5), (8, 4)),
        *((4, 2),) * 3,
    ]
    assert sum(p.numel() for conv in encoder.convolutions for p in conv.parameters()) == 512 * (10 + 512 * 20)


@pytest.mark.parametrize(("stride", "frames"), [(160, 8), (80, 16), (20, 64), (5, 256), (1, 1280)])
def test_a_frame_is_as_many_samples_as_its_stride(stride: int, frames: int) -> None:
    encoder = WaveGRU(width=4, max_stride=stride)
    assert encoder.latents(waves(2, 1280)).shape == (2, frames, 4)
    assert encoder(waves(2, 1280)).shape == (2, 2)


def test_contexts_know_nothing_of_what_comes() -> None:
    torch.manual_seed(0)
    encoder = WaveGRU(width=8)
    latents = torch.randn(2, 12, 8, requires_grad=True)
    encoder.contexts(latents)[:, 5].sum().backward()
    assert latents.grad is not None
    assert bool(latents.grad[:, :6].any(-1).all())
    assert not bool(latents.grad[:, 6:].any())


def test_a_latent_knows_only_its_surroundings() -> None:
    torch.manual_seed(0)
    encoder = WaveGRU(width=8)
    x = waves(1, 3200)
    other = x.clone()
    other[:, 1600:] = 0
    seen, unseen = encoder.latents(x), encoder.latents(other)
    assert torch.equal(seen[:, :8], unseen[:, :8])
    assert not torch.allclose(seen[:, 11:], unseen[:, 11:])


def test_a_quiet_recording_gives_what_a_loud_one_does() -> None:
    torch.manual_seed(0)
    encoder = WaveGRU(width=16)
    torch.testing.assert_close(encoder(0.2 * waves(2, 1600)), encoder(waves(2, 1600)), rtol=0.01, atol=0.01)


@pytest.mark.parametrize("stride", [160, 80, 5])
def test_the_least_samples_give_a_frame(stride: int) -> None:
    encoder = WaveGRU(width=4, max_stride=stride)
    assert encoder.latents(waves(1, encoder.least)).shape == (1, 1, 4)
    with pytest.raises(ValueError, match=rf"at least {stride} samples; got \(1, {stride - 1}\)"):
        encoder(waves(1, encoder.least - 1))


def test_bad_input_is_named() -> None:
    with pytest.raises(ValueError, match=r"waveforms must be \(N, samples\); got \(2, 3, 8, 8\)"):
        WaveGRU(width=4)(torch.zeros(2, 3, 8, 8))
    with pytest.raises(TypeError, match=r"must be floating-point; got torch\.int16"):
        WaveGRU(width=4)(torch.zeros(2, 1600, dtype=torch.int16))
    with pytest.raises(ValueError, match="width must be at least 2 and max_stride at least 1; got 1 and 160"):
        WaveGRU(width=1)
