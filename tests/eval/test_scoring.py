from __future__ import annotations

import math

import pytest
import torch

from fastssl.errors import UserError
from fastssl.eval.scoring import accuracy, check_features, check_labelled


def test_accuracy():
    labels = torch.tensor([0, 1, 2, 2, 0])
    assert accuracy(torch.tensor([0, 1, 1, 1, 1]), labels) == 0.4
    assert accuracy(torch.tensor(2), labels) == 0.4


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_refuses_features_of_a_diverged_encoder(value):
    features = torch.zeros(4, 3)
    features[1:3, 0] = value
    with pytest.raises(UserError, match=r"here: 2 of 4 feature vectors hold NaN or infinity; .* lower learning rate"):
        check_features("here", features)


@pytest.mark.parametrize(
    ("features", "labels", "error", "message"),
    [
        (torch.zeros(3), torch.zeros(3).long(), ValueError, r"got \(3,\)"),
        (torch.zeros(0, 2), torch.zeros(0).long(), ValueError, r"got \(0, 2\)"),
        (torch.zeros(3, 2).long(), torch.zeros(3).long(), TypeError, "int64"),
        (torch.zeros(3, 2), torch.zeros(4).long(), ValueError, r"\(3, 2\) and \(4,\)"),
        (torch.zeros(3, 2), torch.zeros(3), TypeError, "float32"),
        (torch.zeros(3, 2), torch.tensor([0, 1, 5]), ValueError, "0 to 5"),
        (torch.zeros(3, 2), torch.tensor([0, -1, 4]), ValueError, "-1 to 4"),
    ],
)
def test_refuses_what_cannot_be_scored(features, labels, error, message):
    with pytest.raises(error, match=f"^here: .*{message}"):
        check_labelled("here", features, labels, num_classes=5)
