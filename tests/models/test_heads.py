from __future__ import annotations

import pytest
import torch
from torch import nn

from fastssl.models.heads import ProjectionHead


def kinds(head: ProjectionHead) -> list[type]:
    return [type(step) for step in head.layers]


def test_layers_say_what_is_built():
    linear, norm, relu = nn.Linear, nn.BatchNorm1d, nn.ReLU
    assert kinds(ProjectionHead(8, 6, 4, 0)) == []
    assert kinds(ProjectionHead(8, 6, 4, 1)) == [linear, norm]
    assert kinds(ProjectionHead(8, 6, 4)) == [linear, norm, relu, linear, norm]
    assert kinds(ProjectionHead(8, 6, 4, 3)) == [linear, norm, relu, linear, norm, relu, linear, norm]


@pytest.mark.parametrize(("layers", "out_dim"), [(0, 8), (1, 4), (2, 4), (3, 4)])
def test_output_shape(layers, out_dim):
    head = ProjectionHead(8, 6, 4, layers)
    assert head.out_dim == out_dim
    assert head(torch.randn(5, 8)).shape == (5, out_dim)


def test_no_layers_is_the_identity():
    h = torch.randn(5, 8)
    assert torch.equal(ProjectionHead(8, 6, 4, 0)(h), h)


def test_projections_are_centred_and_only_hidden_layers_shift():
    head = ProjectionHead(8, 6, 4, 2)
    assert sorted(name for name, _ in head.named_parameters()) == [
        "layers.0.weight",
        "layers.1.bias",
        "layers.1.weight",
        "layers.3.weight",
        "layers.4.weight",
    ]
    z = head(torch.randn(64, 8) + 3)
    torch.testing.assert_close(z.mean(dim=0), torch.zeros(4), rtol=0, atol=1e-6)


@pytest.mark.parametrize("arguments", [(0, 6, 4, 2), (8, 0, 4, 2), (8, 6, 0, 2), (8, 6, 4, -1)])
def test_refuses_dimensions_out_of_bounds(arguments):
    with pytest.raises(ValueError, match="layers of at least 0; got in_dim="):
        ProjectionHead(*arguments)
