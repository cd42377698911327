"""Heads: small networks between an encoder and a loss, thrown away after pretraining."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn


def linear_norm_relu(inputs: int, outputs: int, *, affine: bool = True) -> nn.Sequential:
    """A hidden layer: linear without bias, batch normalisation, with scale and shift if ``affine``, and ReLU."""
    return nn.Sequential(nn.Linear(inputs, outputs, bias=False), nn.BatchNorm1d(outputs, affine=affine), nn.ReLU())


class ProjectionHead(nn.Module):
    """The projection g of SimCLR (arXiv:2002.05709, section 4.2): nothing, linear, or an MLP.

    As in the authors' code, batch normalisation follows every linear layer, no linear layer has a bias, and the last
    normalisation has a scale but no shift, which leaves the features centred.

    Args:
        in_dim: length of the encoder's features.
        hidden_dim: width of the hidden layers; unused by fewer than two layers.
        out_dim: length of the projections; unused by 0 layers, whose output is their input.
        layers: linear layers: 0 is the identity, 1 linear, 2 and more an MLP with ReLU between.

    Attributes:
        out_dim: length of what comes out: ``in_dim`` for 0 layers.

    Raises:
        ValueError: for a dimension below 1 or layers below 0.
    """

    def __init__(self, in_dim: int, hidden_dim: int, out_dim: int, layers: int = 2) -> None:
        super().__init__()
        if min(in_dim, hidden_dim, out_dim) < 1 or layers < 0:
            raise ValueError(
                f"a projection head needs dimensions of at least 1 and layers of at least 0; "
                f"got in_dim={in_dim}, hidden_dim={hidden_dim}, out_dim={out_dim}, layers={layers}"
            )
        dims = [in_dim] + [hidden_dim] * (layers - 1) + [out_dim] * (layers > 0)
        steps: list[nn.Module] = []
        for i, (inputs, outputs) in enumerate(pairwise(dims), start=1):
            steps += [nn.Linear(inputs, outputs, bias=False), nn.BatchNorm1d(outputs)]
            if i < layers:
                steps.append(nn.ReLU())
        if layers > 0:
            steps[-1].register_parameter("bias", None)
        self.layers = nn.Sequential(*steps)
        self.out_dim = dims[-1]

    def forward(self, h: Tensor) -> Tensor:
        """h: (N, in_dim) features. Returns (N, out_dim) projections, not normalised to unit length."""
        projections: Tensor = self.layers(h)
        return projections
