from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from fastssl.errors import UserError
from fastssl.eval.knn import KNNConfig, knn_accuracy, knn_predict


def brute_force(bank: Tensor, labels: Tensor, queries: Tensor, classes: int, k: int, temperature: float) -> list[int]:
    """The definition, one number after the other in float64."""
    predictions = []
    for query in queries.tolist():
        nearest = []
        for i, row in enumerate(bank.tolist()):
            product = sum(a * b for a, b in zip(query, row, strict=True))
            nearest.append((-product / (math.hypot(*query) * math.hypot(*row)), i))
        votes = [0.0] * classes
        for distance, i in sorted(nearest)[:k]:
            votes[labels[i]] += math.exp(-distance / temperature)
        predictions.append(votes.index(max(votes)))
    return predictions


def data(seed: int = 0, classes: int = 4, bank: int = 60, queries: int = 40) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (bank,), generator=generator)
    return torch.randn(bank, 6, generator=generator), labels, torch.randn(queries, 6, generator=generator)


@pytest.mark.parametrize("k", [1, 5, 20, 60])
@pytest.mark.parametrize("temperature", [0.05, 0.1, 1.0])
def test_is_the_brute_force_loop(k, temperature):
    bank, labels, queries = data(seed=k)
    predicted = knn_predict(bank, labels, queries, num_classes=4, k=k, temperature=temperature)
    assert predicted.tolist() == brute_force(bank, labels, queries, 4, k, temperature)


def test_weights_count_and_not_only_heads():
    """One near neighbour outvotes two far ones at a low temperature and not at a high one."""
    bank = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    labels, query = torch.tensor([1, 0, 0]), torch.tensor([[1.0, 0.5]])
    assert knn_predict(bank, labels, query, num_classes=2, k=3, temperature=0.1).tolist() == [1]
    assert knn_predict(bank, labels, query, num_classes=2, k=3, temperature=10.0).tolist() == [0]


def test_length_of_features_does_not_matter():
    bank, labels, queries = data()
    stretched = bank * torch.linspace(0.1, 10, len(bank)).unsqueeze(1)
    expected = knn_predict(bank, labels, queries, num_classes=4)
    assert torch.equal(knn_predict(stretched, labels, 7 * queries, num_classes=4), expected)


def test_of_equal_neighbours_the_first_in_the_bank_votes():
    bank = torch.tensor([[1.0, 0.0]]).repeat(100, 1)
    query = torch.tensor([[1.0, 0.0]])
    for first in range(3):
        labels = torch.full((100,), 2)
        labels[: 7 + first] = first
        assert knn_predict(bank, labels, query, num_classes=3, k=7).tolist() == [first]


def test_of_equal_classes_the_first_wins():
    bank, query = torch.tensor([[1.0, 1.0], [1.0, -1.0]]), torch.tensor([[1.0, 0.0]])
    for labels in ([2, 1], [1, 2]):
        assert knn_predict(bank, torch.tensor(labels), query, num_classes=3, k=2).tolist() == [1]


def test_a_bank_smaller_than_k_votes_as_a_whole():
    bank, labels, queries = data(bank=7)
    expected = knn_predict(bank, labels, queries, num_classes=4, k=7)
    assert torch.equal(knn_predict(bank, labels, queries, num_classes=4, k=20), expected)


def test_low_temperatures_do_not_overflow():
    bank, labels, queries = data()
    assert torch.equal(
        knn_predict(bank, labels, queries, num_classes=4, k=20, temperature=1e-5),
        knn_predict(bank, labels, queries, num_classes=4, k=1),
    )


def test_a_feature_of_zeros_is_served():
    bank, labels, _ = data()
    assert knn_predict(bank, labels, torch.zeros(1, 6), num_classes=4).shape == (1,)


def test_accuracy_counts_hits():
    bank, labels, queries = data()
    predicted = knn_predict(bank, labels, queries, num_classes=4)
    truth = predicted.clone()
    truth[:10] = (truth[:10] + 1) % 4
    assert knn_accuracy(bank, labels, queries, truth, num_classes=4) == pytest.approx(30 / 40)
    assert knn_accuracy(bank, labels, bank, labels, num_classes=4, k=1) == 1.0


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"k": 0}, "got 0"), ({"temperature": 0.0}, "got 0.0"), ({"temperature": math.nan}, "got nan")],
)
def test_refuses_settings_out_of_bounds(settings, message):
    with pytest.raises(UserError, match=message):
        KNNConfig(**settings)
    bank, labels, queries = data()
    with pytest.raises(UserError, match=message):
        knn_predict(bank, labels, queries, num_classes=4, **settings)


def test_refuses_what_does_not_fit():
    bank, labels, queries = data()
    with pytest.raises(ValueError, match=r"agree on F; got \(60, 6\) and \(40, 5\)"):
        knn_predict(bank, labels, queries[:, :5], num_classes=4)
    with pytest.raises(ValueError, match="kNN bank: labels must lie in"):
        knn_predict(bank, labels + 1, queries, num_classes=4)
    with pytest.raises(UserError, match="kNN queries: 40 of 40 feature vectors hold NaN"):
        knn_predict(bank, labels, queries * math.nan, num_classes=4)
