from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from fastssl.data.images import ImageSet, Splits
from fastssl.errors import UserError
from fastssl.eval.knn import KNNConfig
from fastssl.eval.protocol import EvalConfig, Pixels, evaluate


class Red(nn.Module):
    """Knows what the labels of :func:`colours` are: how red an image is."""

    def forward(self, x: Tensor) -> Tensor:
        red = x[:, 0].mean(dim=(1, 2))
        return torch.stack([red, -red], dim=1)


class Blind(nn.Module):
    """Features that have nothing to do with the image, and no parameters."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(12345 * x[:, 2, 0, :2] + 1)


def colours(count: int, seed: int = 0) -> ImageSet:
    """Noise that is red (one in four) or not red (three in four)."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(256, (count, 3, 8, 8), generator=generator, dtype=torch.uint8)
    labels = (torch.arange(count) % 4 != 0).long()
    images[:, 0] = torch.where(labels == 0, 230, 20).to(torch.uint8).view(-1, 1, 1)
    return ImageSet(images, labels, ("red", "other"), tuple(map(str, range(count))), "colours")


@pytest.fixture(scope="module")
def splits() -> Splits:
    return Splits(colours(80), colours(40, seed=1))


def test_the_table(splits):
    scores = evaluate(Red(), Blind(), splits, size=8)
    assert [row.features for row in scores.rows] == ["trained", "random initialisation", "raw pixels"]
    assert [row.dim for row in scores.rows] == [2, 2, 3 * 8 * 8]
    assert (scores.row("trained").knn, scores.row("trained").linear) == (1.0, 1.0)
    assert scores.row("random initialisation").knn < 0.9
    assert scores.row("raw pixels").linear > 0.9
    assert scores.majority == 0.75
    assert (scores.train_images, scores.test_images, scores.classes) == (80, 40, 2)
    assert (scores.k, scores.temperature) == (KNNConfig.k, KNNConfig.temperature)
    with pytest.raises(KeyError, match="supervised"):
        scores.row("supervised")


def test_is_the_same_again_and_leaves_encoders_as_they_were(splits):
    encoder = nn.Sequential(Red(), nn.BatchNorm1d(2))
    first, second = (evaluate(encoder, Blind(), splits, size=8) for _ in range(2))
    assert first == second
    assert encoder.training
    assert encoder[1].num_batches_tracked == 0


def test_majority_is_of_the_training_set(splits):
    turned = replace(splits.test, labels=1 - splits.test.labels)
    assert evaluate(Red(), Blind(), Splits(splits.train, turned), size=8).majority == 0.25


def test_to_dict_is_json(splits):
    scores = evaluate(Red(), Blind(), splits, size=8)
    values = json.loads(json.dumps(scores.to_dict()))
    assert values["rows"][0]["features"] == "trained"
    assert values["rows"][0]["knn"] == scores.rows[0].knn
    assert values["majority"] == 0.75


def test_config_reaches_every_part(splits):
    scores = evaluate(
        Red(), Blind(), splits, size=8, config=EvalConfig(knn=KNNConfig(k=3, temperature=0.5), pixels=2, batch_size=7)
    )
    assert (scores.k, scores.temperature, scores.row("raw pixels").dim) == (3, 0.5, 3 * 2 * 2)


def test_a_training_set_smaller_than_k(splits):
    few = Splits(splits.train.subset(torch.arange(8)), splits.test)
    scores = evaluate(Red(), Blind(), few, size=8)
    assert scores.k == 8
    assert scores.row("trained").linear == 1.0


@pytest.mark.parametrize("settings", [{"batch_size": 0}, {"pixels": 0}])
def test_config_refuses_values_out_of_bounds(settings):
    with pytest.raises(UserError, match="must be at least 1; got batch_size="):
        EvalConfig(**settings)


def test_pixels():
    x = torch.arange(2 * 3 * 4 * 4.0).view(2, 3, 4, 4)
    assert torch.equal(Pixels(8)(x), x.flatten(1))
    assert Pixels(2)(x)[0, 0] == x[0, 0, :2, :2].mean()


def test_without_labels_it_says_what_gives_them(splits):
    bare = replace(splits.train, labels=None, classes=())
    for given in (
        Splits(bare, None),
        Splits(splits.train, None),
        Splits(splits.train, replace(splits.test, labels=None)),
    ):
        with pytest.raises(UserError, match=r"^colours has no labels to score against: .* folder of its name"):
            evaluate(Red(), Blind(), given, size=8)


def test_refuses_splits_of_different_classes(splits):
    other = replace(splits.test, classes=("red", "blue"))
    with pytest.raises(ValueError, match="same classes"):
        evaluate(Red(), Blind(), Splits(splits.train, other), size=8)


def test_a_diverged_encoder_is_an_error_and_not_a_score(splits):
    class Diverged(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(1) * math.nan

    with pytest.raises(UserError, match="NaN or infinity"):
        evaluate(Diverged(), Blind(), splits, size=8)
