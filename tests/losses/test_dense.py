"""DenseContrastive: places find their match by the backbones' features, and images' mean keys fill the queue."""

from __future__ import annotations

import pytest
import torch
from formulas import dense
from torch.nn.functional import normalize

from fastssl.losses import DenseContrastive


def test_equals_its_definition() -> None:
    generator = torch.Generator().manual_seed(0)
    query, key = torch.randn(2, 2, 5, 3, 4, generator=generator)
    query_features, key_features = torch.randn(2, 2, 6, 3, 4, generator=generator)
    loss = DenseContrastive(0.2, dim=5, length=9)
    want = dense(query, key, loss.queue.clone(), 0.2, (query_features, key_features))
    torch.testing.assert_close(loss(query, key, query_features, key_features), want)
    torch.testing.assert_close(loss.queue[:2], normalize(key.mean((2, 3)), dim=1))
    assert loss.cursor == 2


def test_bad_input_is_named() -> None:
    loss, grid = DenseContrastive(0.2, dim=5, length=9), torch.zeros(2, 5, 3, 4)
    with pytest.raises(ValueError, match="DenseContrastive: key must have the batch and places of query"):
        loss(grid, grid[:, :, :2], grid, grid)
    with pytest.raises(ValueError, match="DenseContrastive: the queue has keys of 5 features; got query"):
        loss(grid[:, :4], grid[:, :4], grid, grid)
    many = torch.zeros(10, 5, 1, 1)
    with pytest.raises(ValueError, match=r"DenseContrastive: the queue has 9 keys, and the batch \(.*\) 10"):
        loss(many, many, many, many)
