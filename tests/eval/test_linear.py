from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from fastssl.errors import UserError
from fastssl.eval import linear
from fastssl.eval.linear import L2_STRENGTHS, linear_probe, standardise, stratified_holdout


def blobs(count: int, classes: int = 3, dim: int = 10, spread: float = 0.3, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Labels and Gaussian clouds around one corner a class."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % classes
    return torch.eye(classes, dim)[labels] + spread * torch.randn(count, dim, generator=generator), labels


def test_separable_data_is_solved():
    probe = linear_probe(*blobs(120, seed=0), *blobs(90, seed=1), num_classes=3)
    assert probe.accuracy > 0.95
    assert probe.held_out_accuracy is not None
    assert probe.held_out_accuracy > 0.9
    assert probe.l2 in L2_STRENGTHS


def test_random_labels_stay_near_chance():
    generator = torch.Generator().manual_seed(0)
    train, test = torch.randn(600, 20, generator=generator), torch.randn(1000, 20, generator=generator)
    labels, truth = torch.randint(4, (600,), generator=generator), torch.randint(4, (1000,), generator=generator)
    probe = linear_probe(train, labels, test, truth, num_classes=4)
    assert probe.accuracy == pytest.approx(0.25, abs=5 * math.sqrt(0.25 * 0.75 / 1000))


def test_noise_wants_a_strong_penalty():
    """Few samples in many noisy dimensions: the weakest penalty overfits, and the sweep notices."""
    train, labels = blobs(60, dim=200, spread=1.0, seed=0)
    assert linear_probe(train, labels, *blobs(300, dim=200, spread=1.0, seed=1), num_classes=3).l2 > L2_STRENGTHS[-1]


def test_the_strength_is_chosen_without_the_test_set():
    train, labels = blobs(120, spread=1.0)
    test, truth = blobs(90, spread=1.0, seed=1)
    probes = [linear_probe(train, labels, test, (truth + shift) % 3, num_classes=3) for shift in (0, 1)]
    assert probes[0].l2 == probes[1].l2
    assert probes[0].held_out_accuracy == probes[1].held_out_accuracy
    assert probes[0].accuracy > probes[1].accuracy


def test_is_seeded():
    arguments = (*blobs(60, spread=1.0), *blobs(60, spread=1.0, seed=1))
    probes = [linear_probe(*arguments, num_classes=3, seed=seed) for seed in (0, 0, *range(1, 6))]
    assert probes[0] == probes[1]
    assert len({probe.held_out_accuracy for probe in probes}) > 1


def test_finds_the_optimum_that_scikit_learn_finds():
    sklearn = pytest.importorskip("sklearn.linear_model")
    x, y = blobs(200, spread=1.0)
    (x,) = standardise(x)
    l2 = 1e-2
    *_, (weight, bias) = linear._fit_path(x, y, 3, (1.0, 0.1, l2))
    theirs = sklearn.LogisticRegression(C=1 / (l2 * len(x)), tol=1e-8, max_iter=1000).fit(x.numpy(), y.numpy())
    np.testing.assert_allclose(weight.numpy(), theirs.coef_, atol=2e-3)
    np.testing.assert_allclose((bias - bias.mean()).numpy(), theirs.intercept_ - theirs.intercept_.mean(), atol=2e-3)


def test_scale_and_shift_of_features_do_not_matter():
    train, labels = blobs(120, spread=0.8)
    test, truth = blobs(90, spread=0.8, seed=1)
    scale = torch.logspace(-4, 4, train.shape[1])
    plain = linear_probe(train, labels, test, truth, num_classes=3)
    moved = linear_probe(train * scale + 3 * scale, labels, test * scale + 3 * scale, truth, num_classes=3)
    assert moved.accuracy == pytest.approx(plain.accuracy, abs=0.03)


def test_constant_features_are_no_features():
    train, labels = blobs(60)
    constant = torch.full((60, 4), 0.1)
    x, test = standardise(torch.cat([train, constant], 1), torch.cat([train, constant + 1], 1))
    assert torch.equal(x[:, -4:], torch.zeros(60, 4))
    assert torch.equal(test[:, -4:], torch.zeros(60, 4))
    torch.testing.assert_close(x[:, :-4].std(dim=0, correction=0), torch.ones(10))
    torch.testing.assert_close(x.mean(dim=0), torch.zeros(14), rtol=0, atol=1e-6)
    probe = linear_probe(constant, labels, constant, labels, num_classes=3)
    assert probe.accuracy == pytest.approx(1 / 3)


def test_holdout_is_stratified_and_seeded():
    labels = torch.tensor([0] * 50 + [1] * 10 + [2] * 3 + [3] * 2 + [4])
    mask = stratified_holdout(labels, share=0.2, seed=0)
    assert [int(mask[labels == c].sum()) for c in range(5)] == [10, 2, 1, 1, 0]
    assert torch.equal(mask, stratified_holdout(labels, share=0.2, seed=0))
    assert not torch.equal(mask, stratified_holdout(labels, share=0.2, seed=1))


def test_classes_of_one_image():
    x, y = torch.eye(3), torch.arange(3)
    probe = linear_probe(x, y, x, y, num_classes=3)
    assert (probe.accuracy, probe.l2, probe.held_out_accuracy) == (1.0, L2_STRENGTHS[0], None)
    train, labels = blobs(60)
    train, labels = torch.cat([train, torch.ones(1, 10)]), torch.cat([labels, torch.tensor([3])])
    assert linear_probe(train, labels, *blobs(60, seed=1), num_classes=4).accuracy > 0.9


def test_a_single_class():
    x, y = torch.randn(10, 4), torch.zeros(10).long()
    assert linear_probe(x, y, x, y, num_classes=1).accuracy == 1.0


def test_works_where_gradients_are_off():
    train, labels = blobs(60)
    with torch.inference_mode():
        frozen = train.clone()
    assert linear_probe(frozen, labels, frozen, labels, num_classes=3).accuracy > 0.9
    with torch.no_grad():
        assert linear_probe(train, labels, train, labels, num_classes=3).accuracy > 0.9


def test_refuses_what_does_not_fit():
    train, labels = blobs(60)
    with pytest.raises(ValueError, match=r"agree on F; got \(60, 10\) and \(60, 9\)"):
        linear_probe(train, labels, train[:, :9], labels, num_classes=3)
    with pytest.raises(ValueError, match="linear probe, test set: labels must lie in"):
        linear_probe(train, labels, train, labels + 1, num_classes=3)
    with pytest.raises(UserError, match="linear probe, training set: 60 of 60 feature vectors hold NaN"):
        linear_probe(train * math.nan, labels, train, labels, num_classes=3)
