from __future__ import annotations

import pytest
import torch

from fastssl.errors import UserError
from fastssl.eval import few_labels

LABELS = torch.arange(1000) % 10


def test_each_class_has_equally_many() -> None:
    for share, count in ((0.01, 1), (0.1, 10), (0.25, 25)):
        chosen = few_labels(LABELS, share=share, seed=0)
        assert LABELS[chosen].bincount().tolist() == [count] * 10
        assert torch.equal(chosen, chosen.unique())


def test_unequal_classes_are_made_equal_as_far_as_they_go() -> None:
    labels = torch.tensor([0] * 90 + [1] * 8 + [2] * 2)
    assert labels[few_labels(labels, share=0.12, seed=0)].bincount().tolist() == [4, 4, 2]
    assert labels[few_labels(labels, share=0.001, seed=0)].bincount().tolist() == [1, 1, 1]


def test_the_seed_decides_and_a_small_share_is_within_a_large_one() -> None:
    small, again, other = (few_labels(LABELS, share=0.05, seed=seed) for seed in (3, 3, 4))
    assert torch.equal(small, again)
    assert not torch.equal(small, other)
    assert set(small.tolist()) < set(few_labels(LABELS, share=0.2, seed=3).tolist())


def test_all_labels_are_all_images() -> None:
    assert torch.equal(few_labels(LABELS, share=1, seed=0), torch.arange(1000))


@pytest.mark.parametrize("share", [0, -0.1, 1.5])
def test_refuses_other_shares(share: float) -> None:
    with pytest.raises(UserError, match=f"above 0 and at most 1; got {share}"):
        few_labels(LABELS, share=share, seed=0)


def test_refuses_no_labels() -> None:
    with pytest.raises(ValueError, match=r"got \(0,\)"):
        few_labels(torch.zeros(0).long(), share=0.1, seed=0)
