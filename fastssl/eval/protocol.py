"""The one protocol of every score: the trained encoder beside the same encoder untrained and beside the pixels.

A number of a self-supervised encoder means little alone: a randomly initialised network of the same shape and the raw
pixels, which learnt nothing, often score well above chance.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastssl.data.images import Splits
from fastssl.errors import UserError
from fastssl.eval.features import BATCH_SIZE, extract
from fastssl.eval.knn import KNNConfig, knn_accuracy
from fastssl.eval.linear import linear_probe
from fastssl.eval.scoring import accuracy

TRAINED, RANDOM, PIXELS = "trained", "random initialisation", "raw pixels"


@dataclass(frozen=True)
class EvalConfig:
    """How encoders are scored.

    Attributes:
        knn: the vote of the nearest neighbours.
        batch_size: images a forward pass.
        pixels: raw pixels are the image averaged down to this side, flattened.
        seed: draws the part of the training set on which the linear probe chooses its strength.
    """

    knn: KNNConfig = field(default_factory=KNNConfig)
    batch_size: int = BATCH_SIZE
    pixels: int = 32
    seed: int = 0

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.pixels < 1:
            raise UserError(
                f"batch_size and pixels must be at least 1; got batch_size={self.batch_size}, pixels={self.pixels}"
            )


@dataclass(frozen=True)
class Row:
    """Scores of one kind of features on the test set.

    Attributes:
        features: what is scored: "trained", "random initialisation" or "raw pixels".
        dim: length of a feature vector.
        knn: accuracy of weighted kNN, in [0, 1].
        linear: accuracy of the linear probe, in [0, 1].
        l2: the strength of regularisation that the probe chose.
    """

    features: str
    dim: int
    knn: float
    linear: float
    l2: float


@dataclass(frozen=True)
class Scores:
    """The table of scores.

    Attributes:
        rows: trained, random initialisation, raw pixels.
        majority: accuracy on the test set of always naming the largest class of the training set.
        k: neighbours that voted: the config's, or the whole training set where it is smaller.
        temperature: of that vote.
        train_images, test_images: sizes of the two sets.
        classes: number of classes.
    """

    rows: tuple[Row, ...]
    majority: float
    k: int
    temperature: float
    train_images: int
    test_images: int
    classes: int

    def row(self, features: str) -> Row:
        """The row of that name. Raises KeyError, if there is none."""
        for row in self.rows:
            if row.features == features:
                return row
        raise KeyError(features)

    def to_dict(self) -> dict[str, Any]:
        """As plain lists, dicts, strings and numbers, for JSON."""
        return asdict(self) | {"rows": [asdict(row) for row in self.rows]}


class Pixels(nn.Module):
    """The encoder that learns nothing: images averaged down to ``side`` x ``side``, flattened."""

    def __init__(self, side: int) -> None:
        super().__init__()
        self.side = side

    def forward(self, x: Tensor) -> Tensor:
        """x: (N, 3, H, W). Returns (N, 3 * side * side), the side at most that of the images."""
        size = (min(self.side, x.shape[2]), min(self.side, x.shape[3]))
        return F.adaptive_avg_pool2d(x, size).flatten(1)


def labels_of(splits: Splits) -> tuple[Tensor, Tensor]:
    """The labels, int64, of training and test set.

    Raises:
        UserError: if one is missing or has no labels, naming the folders that give them.
        ValueError: if the two name different classes.
    """
    train, test = splits.train, splits.test
    if train.labels is None or test is None or test.labels is None:
        raise UserError(
            f"{train.source} has no labels to score against: put the images of each class into a folder of its name "
            f"(<class>/<image>, or train/<class>/<image> and test/<class>/<image>)"
        )
    if test.classes != train.classes:
        raise ValueError(f"evaluate: both splits must have the same classes; got {train.classes} and {test.classes}")
    return train.labels, test.labels


def score_encoder(
    name: str,
    encoder: nn.Module,
    splits: Splits,
    *,
    size: int,
    config: EvalConfig | None = None,
    device: torch.device | str = "cpu",
) -> Row:
    """The row called ``name``: the scores of one encoder. Arguments and errors are those of :func:`evaluate`."""
    config = config or EvalConfig()
    train_labels, test_labels = (labels.to(device) for labels in labels_of(splits))
    assert splits.test is not None
    classes = len(splits.train.classes)
    encoder.to(device)
    bank, queries = (
        extract(encoder, part.images, size=size, batch_size=config.batch_size, device=device).to(device)
        for part in (splits.train, splits.test)
    )
    labelled = (bank, train_labels, queries, test_labels)
    knn = knn_accuracy(*labelled, num_classes=classes, **asdict(config.knn))
    probe = linear_probe(*labelled, num_classes=classes, seed=config.seed)
    return Row(name, bank.shape[1], knn, probe.accuracy, probe.l2)


def evaluate(
    encoder: nn.Module,
    random_encoder: nn.Module,
    splits: Splits,
    *,
    size: int,
    config: EvalConfig | None = None,
    device: torch.device | str = "cpu",
) -> Scores:
    """Scores of ``encoder``, of the same architecture untrained, and of raw pixels, all under one protocol.

    Args:
        encoder, random_encoder: (N, 3, size, size) to (N, F); moved to ``device``.
        splits: the labelled training set is the kNN bank and fits the probe; the labelled test set is what is scored.
        size: side of what the encoders see, in pixels.
        config: defaults to ``EvalConfig()``.
        device: where features are computed and scored.
    Raises:
        UserError: if a split is missing or has no labels, naming the folders that give them; for features that are
            not finite.
        ValueError: if the splits name different classes.
    """
    config = config or EvalConfig()
    train_labels, test_labels = labels_of(splits)
    encoders = ((TRAINED, encoder), (RANDOM, random_encoder), (PIXELS, Pixels(config.pixels)))
    rows = [score_encoder(name, module, splits, size=size, config=config, device=device) for name, module in encoders]
    return Scores(
        rows=tuple(rows),
        majority=accuracy(train_labels.bincount().argmax(), test_labels),
        k=min(config.knn.k, len(train_labels)),
        temperature=config.knn.temperature,
        train_images=len(train_labels),
        test_images=len(test_labels),
        classes=len(splits.train.classes),
    )
