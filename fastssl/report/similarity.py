"""Which images an encoder finds alike, as matrices: squares along the diagonal are classes that it tells apart."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from markupsafe import Markup
from torch import Tensor, nn

from fastssl.data.images import ImageSet
from fastssl.eval import extract
from fastssl.report import figures
from fastssl.report.sample import choose

IMAGES, CLASSES = 120, 12  # shown, at most: 10 images of a class, where there are so many classes


@dataclass(frozen=True)
class Matrix:
    """Cosines of an encoder's features.

    Attributes:
        name: of the encoder.
        within: mean of different images of one class.
        between: mean of images of different classes.
    """

    name: str
    svg: Markup
    within: float
    between: float


def matrices(images: ImageSet, encoders: Mapping[str, nn.Module], *, size: int, seed: int) -> list[Matrix]:
    """A matrix of the same images for each encoder, class after class; none without labels of two classes or more.

    Features are compared after their mean is subtracted: what all images share tells none apart.

    Args:
        images: of which ``seed`` draws those shown, of the first `CLASSES` classes.
        size: side of the images that the encoders take, in pixels.
    """
    if images.labels is None:
        return []
    known = images.subset((images.labels < CLASSES).nonzero().flatten())
    few = known.subset(choose(known, IMAGES, seed))
    assert few.labels is not None
    if len(set(few.labels.tolist())) < 2:
        return []
    return [_matrix(name, extract(encoder, few.images, size=size), few) for name, encoder in encoders.items()]


def _matrix(name: str, features: Tensor, images: ImageSet) -> Matrix:
    labels = images.labels
    assert labels is not None
    unit = F.normalize(features - features.mean(0), dim=1)
    cosines = unit @ unit.T
    alike = labels[:, None] == labels
    others = alike & ~torch.eye(len(labels), dtype=torch.bool)
    groups = [(images.classes[label], int((labels == label).sum())) for label in sorted(set(labels.tolist()))]
    return Matrix(
        name,
        figures.matrix(cosines.numpy(), groups, title=f"Similarities of images, {name}"),
        within=_mean(cosines[others]),
        between=_mean(cosines[~alike]),
    )


def _mean(values: Tensor) -> float:
    """0 of none."""
    return float(values.mean()) if len(values) else 0.0
