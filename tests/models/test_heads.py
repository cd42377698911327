from __future__ import annotations

import pytest
import torch
from torch import nn

from fastssl.models.heads import ProjectionHead, PrototypeHead


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


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"end": "bias"}, [nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Linear]),
        ({"end": "plain", "norm": False}, [nn.Linear, nn.ReLU, nn.Linear]),
        ({"end": "normalized"}, [nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Linear, nn.BatchNorm1d]),
        ({"layers": 1, "end": "bias", "norm": False}, [nn.Linear]),
    ],
)
def test_other_ends(settings, expected):
    head = ProjectionHead(8, 6, 4, **settings)
    assert kinds(head) == expected
    assert head(torch.randn(5, 8)).shape == (5, 4)


def test_a_layer_has_a_bias_where_no_normalisation_takes_it_away():
    def biases(**settings) -> list[bool]:
        return [step.bias is not None for step in ProjectionHead(8, 6, 4, **settings).layers if hasattr(step, "bias")]

    assert biases() == [False, True, False, False]  # linear, normalisation, linear, normalisation with a scale alone
    assert biases(end="bias") == [False, True, True]
    assert biases(end="plain") == [False, True, False]
    assert biases(end="normalized") == [False, True, False, False]
    assert biases(end="bias", norm=False) == [True, True]


def test_refuses_another_end():
    with pytest.raises(ValueError, match="ends in one of scaled, normalized, bias, plain; got 'shifted'"):
        ProjectionHead(8, 6, 4, end="shifted")


def test_prototypes_are_compared_by_cosine():
    head = PrototypeHead(8, 6, 5, 7)
    h = torch.randn(3, 8)
    out, weight = head.mlp(h), head.prototypes.weight
    for n in range(3):
        for k in range(7):
            cosine = (out[n] @ weight[k]) / (out[n].norm() * weight[k].norm())
            assert head(h)[n, k].item() == pytest.approx(cosine.item(), abs=1e-6)


@pytest.mark.parametrize("frozen", [True, False])
def test_frozen_prototypes_get_no_gradient(frozen):
    head = PrototypeHead(8, 6, 5, 7)
    head(torch.randn(3, 8), frozen=frozen).square().sum().backward()
    assert (head.prototypes.weight.grad is None) == frozen
    assert head.mlp[0].weight.grad.any()


def test_refuses_no_prototypes():
    with pytest.raises(ValueError, match="got dim=5, count=0"):
        PrototypeHead(8, 6, 5, 0)
    with pytest.raises(ValueError, match="hidden_dim=0"):
        PrototypeHead(8, 0, 5, 7)
