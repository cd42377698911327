"""Linear probe: multinomial logistic regression on frozen features.

Minimised is the mean cross-entropy plus ``l2 / 2 * |W|^2`` over standardised features; the bias is free. That is
convex, so L-BFGS on the full batch needs no learning rate, no order of samples and no seed of its own. The strength
``l2`` is chosen on a held-out part of the training set; the test set is looked at once, at the end.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fastssl.eval.scoring import accuracy, check_labelled

L2_STRENGTHS = (1.0, 1e-1, 1e-2, 1e-3, 1e-4)
"""The sweep, strongest first: each fit starts from the one before."""

HELD_OUT = 0.2
"""Share of every class's training images on which the strength is chosen."""

_ITERATIONS = 50


@dataclass(frozen=True)
class LinearProbe:
    """What a linear probe found.

    Attributes:
        accuracy: on the test set, in [0, 1].
        l2: the strength chosen.
        held_out_accuracy: of that strength on the held-out part; None where every class has one image only.
    """

    accuracy: float
    l2: float
    held_out_accuracy: float | None


def stratified_holdout(labels: Tensor, *, share: float, seed: int) -> Tensor:
    """A seeded (N,) bool mask with ``share`` of every class, rounded, and of two images or more at least one.

    A class always keeps at least one image outside the mask, so a class of one image has none in it.
    """
    generator = torch.Generator().manual_seed(seed)
    mask = torch.zeros(len(labels), dtype=torch.bool)
    for label in torch.unique(labels).tolist():
        members = (labels == label).nonzero().squeeze(1)
        count = min(max(1, round(share * len(members))), len(members) - 1)
        mask[members[torch.randperm(len(members), generator=generator)[:count]]] = True
    return mask


def standardise(reference: Tensor, *others: Tensor) -> list[Tensor]:
    """All of them, in float32, by the mean and deviation of ``reference``'s columns; constant columns become zero."""
    reference = reference.float()
    mean, std = reference.mean(dim=0), reference.std(dim=0, correction=0)
    # Relative to the column's size: rounding leaves a constant column a deviation that is small but not zero.
    scale = torch.where(std > 1e-6 * reference.abs().amax(dim=0), 1 / std, 0.0)
    return [(features.float() - mean) * scale for features in (reference, *others)]


def _fit_path(x: Tensor, y: Tensor, num_classes: int, strengths: tuple[float, ...]) -> Iterator[tuple[Tensor, Tensor]]:
    """Weight (C, F) and bias (C,) of each strength in turn; a later fit starts from the one before."""
    weight = x.new_zeros(num_classes, x.shape[1], requires_grad=True)
    bias = x.new_zeros(num_classes, requires_grad=True)
    for l2 in strengths:
        optimizer = torch.optim.LBFGS([weight, bias], max_iter=_ITERATIONS, line_search_fn="strong_wolfe")

        def objective(l2: float = l2, optimizer: torch.optim.Optimizer = optimizer) -> Tensor:
            optimizer.zero_grad()
            loss = F.cross_entropy(F.linear(x, weight, bias), y) + 0.5 * l2 * weight.square().sum()
            loss.backward()  # type: ignore[no-untyped-call]
            return loss

        with torch.enable_grad():
            optimizer.step(objective)  # type: ignore[no-untyped-call]
        yield weight.detach().clone(), bias.detach().clone()


def linear_probe(
    train: Tensor,
    train_labels: Tensor,
    test: Tensor,
    test_labels: Tensor,
    *,
    num_classes: int,
    seed: int = 0,
) -> LinearProbe:
    """Accuracy of the best linear classifier of ``train``, its strength chosen without ``test``.

    Each strength of :data:`L2_STRENGTHS` is fitted on a part of ``train`` and scored on the rest, the share
    :data:`HELD_OUT` of each class. The best one (the stronger of two equals; the strongest where no class has two
    images) is fitted again on all of ``train``.

    Args:
        train, test: (N, F) and (M, F) floating-point features, finite, on one device.
        train_labels, test_labels: (N,) and (M,) int64 in [0, num_classes).
        seed: draws the held-out part, nothing else.
    Raises:
        ValueError, TypeError: naming what was received, if it does not fit.
        UserError: for features that are not finite.
    """
    check_labelled("linear probe, training set", train, train_labels, num_classes)
    check_labelled("linear probe, test set", test, test_labels, num_classes)
    if train.shape[1] != test.shape[1]:
        raise ValueError(
            f"linear probe: train (N, F) and test (M, F) must agree on F; "
            f"got {tuple(train.shape)} and {tuple(test.shape)}"
        )
    held = stratified_holdout(train_labels.cpu(), share=HELD_OUT, seed=seed).to(train.device)
    best, held_out = 0, None
    if held.any():
        fit_x, held_x = standardise(train[~held], train[held])
        path = _fit_path(fit_x, train_labels[~held], num_classes, L2_STRENGTHS)
        scores = [accuracy(F.linear(held_x, *solution).argmax(dim=1), train_labels[held]) for solution in path]
        best = scores.index(max(scores))
        held_out = scores[best]
    x, test_x = standardise(train, test)
    *_, solution = _fit_path(x, train_labels, num_classes, L2_STRENGTHS[: best + 1])
    predicted = F.linear(test_x, *solution).argmax(dim=1)
    return LinearProbe(accuracy(predicted, test_labels), L2_STRENGTHS[best], held_out)
