"""Contexts of rows, and predictions of steps ahead."""

from __future__ import annotations

import pytest
import torch

from fastssl.models.context import RowContext, StepsAhead


@pytest.mark.parametrize("layers", [1, 3])
def test_a_context_sees_its_row_and_as_many_above_as_there_are_layers(layers: int) -> None:
    torch.manual_seed(0)
    context = RowContext(8, layers)
    maps = torch.randn(2, 8, 6, 9, requires_grad=True)
    context(maps)[0, :, 4, 4].sum().backward()
    assert maps.grad is not None
    rows = maps.grad.any(1)[0].any(1)
    assert rows.tolist() == [4 - layers <= row <= 4 for row in range(6)]
    columns = maps.grad.any(1)[0].any(0)
    assert columns.tolist() == [abs(column - 4) <= layers for column in range(9)]
    assert not bool(maps.grad[1].any())


def test_predictions_stand_beside_what_comes_so_many_steps_later() -> None:
    torch.manual_seed(0)
    ahead = StepsAhead(3, 2, 2, 3)
    contexts, latents = torch.randn(2, 5, 4, 3), torch.randn(2, 5, 4, 2)
    predictions, targets = ahead(contexts, latents)
    assert [tuple(rows.shape) for rows in predictions] == [(2 * 3 * 4, 2), (2 * 2 * 4, 2)]
    for k, found, target in zip((2, 3), predictions, targets, strict=True):
        found, target = found.view(2, 5 - k, 4, 2), target.view(2, 5 - k, 4, 2)
        weight = ahead.predict[k - 2].weight
        torch.testing.assert_close(found[1, 1, 3], weight @ contexts[1, 1, 3])
        assert torch.equal(target[1, 1, 3], latents[1, 1 + k, 3])


def test_what_cannot_work_is_named() -> None:
    with pytest.raises(ValueError, match="to predict 3 steps ahead takes 4 or more; got 3"):
        StepsAhead(2, 2, 1, 3)(torch.zeros(1, 3, 2), torch.zeros(1, 3, 2))
    with pytest.raises(ValueError, match=r"the last not before the first; got .* first=2, last=1"):
        StepsAhead(2, 2, 2, 1)
    with pytest.raises(ValueError, match="dim and layers of at least 1; got 4 and 0"):
        RowContext(4, 0)
