from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from fastssl import models
from fastssl.errors import UserError
from fastssl.methods.cpc_audio import CPCAudio, CPCAudioConfig
from fastssl.train import config as configs
from fastssl.train.loop import build_method, check_views


def waves(count: int, samples: int) -> Tensor:
    return torch.rand(count, samples, generator=torch.Generator().manual_seed(0), dtype=torch.float64) - 0.5


@pytest.fixture
def method() -> CPCAudio:
    torch.manual_seed(0)
    encoder = models.get("wave_gru")(width=6, max_stride=5)
    return CPCAudio(encoder, CPCAudioConfig(first_step=1, last_step=3)).double()


def test_the_loss_is_equation_4_number_by_number(method: CPCAudio) -> None:
    views = waves(2, 30)
    z = method.encoder.latents(views)
    c = method.encoder.contexts(z)
    assert z.shape == (2, 6, 6)
    steps, bounds, solved = [], [], []
    for k in (1, 2, 3):
        matrix = method.ahead.predict[k - 1].weight
        candidates = [z[n, t].tolist() for n in range(2) for t in range(k, 6)]
        terms = []
        for n, t in ((n, t) for n in range(2) for t in range(6 - k)):
            predicted = (matrix @ c[n, t]).tolist()
            scores = [sum(a * b for a, b in zip(predicted, latent, strict=True)) for latent in candidates]
            own = sum(a * b for a, b in zip(predicted, z[n, t + k].tolist(), strict=True))
            terms.append(math.log(sum(map(math.exp, scores))) - own)
            if k == 1:
                solved.append(own == max(scores))
        steps.append(sum(terms) / len(terms))
        bounds.append(math.log(len(candidates)) - steps[-1])
    assert method([views]).item() == pytest.approx(sum(steps) / 3, rel=1e-10)
    assert method.metrics(0.0, 2) == {
        "mutual_information_bound": pytest.approx(sum(bounds) / 3, rel=1e-8),
        "pretext_accuracy": pytest.approx(sum(solved) / len(solved)),
        "chance": pytest.approx(1 / len(solved)),
    }


def test_the_features_are_the_mean_of_the_contexts(method: CPCAudio) -> None:
    views = waves(2, 30)
    expected = method.encoder.contexts(method.encoder.latents(views)).mean(1)
    torch.testing.assert_close(method.kept(views), expected)


def test_windows_that_are_too_short_are_refused_before_a_run() -> None:
    config = configs.from_dict({"method": "cpc_audio", "width": 4, "media": {"samples": 1600}})
    with pytest.raises(UserError, match="to predict 12 steps ahead takes 13 or more; got 10"):
        check_views(build_method(config), config)


def test_an_encoder_of_images_is_refused() -> None:
    config = configs.from_dict({"method": "cpc_audio", "encoder": "resnet18", "width": 4})
    with pytest.raises(UserError, match="cpc_audio needs an encoder of waveforms, and a ResNet is none: take wave_gru"):
        build_method(config)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"last_step": 0}, "cpc_audio predicts from first_step to last_step frames ahead; got 1 to 0"),
        ({"first_step": 0}, "first_step"),
        ({"temperature": 0.0}, "temperature"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings: dict[str, float], said: str) -> None:
    with pytest.raises(UserError, match=said):
        CPCAudioConfig(**settings)
