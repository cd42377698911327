"""Heads: small networks between an encoder and a loss, thrown away after pretraining."""

from __future__ import annotations

from itertools import pairwise
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

End = Literal["scaled", "normalized", "bias", "plain"]


def linear_norm_relu(inputs: int, outputs: int, *, affine: bool = True) -> nn.Sequential:
    """A hidden layer: linear without bias, batch normalisation, with scale and shift if ``affine``, and ReLU."""
    return nn.Sequential(nn.Linear(inputs, outputs, bias=False), nn.BatchNorm1d(outputs, affine=affine), nn.ReLU())


class ProjectionHead(nn.Module):
    """Nothing, a linear layer, or an MLP with ReLU between its layers.

    By default the projection g of SimCLR (arXiv:2002.05709, section 4.2) as in the authors' code: batch normalisation
    follows every linear layer, no linear layer has a bias, and the last normalisation has a scale but no shift, which
    leaves the features centred.

    Args:
        in_dim: length of the encoder's features.
        hidden_dim: width of the hidden layers; unused by fewer than two layers.
        out_dim: length of the projections; unused by 0 layers, whose output is their input.
        layers: linear layers: 0 is the identity, 1 linear, 2 and more an MLP with ReLU between.
        norm: False leaves batch normalisation out of the hidden layers and gives them a bias, as MoCo v2 has it.
        end: what the last linear layer is followed by: "scaled" is batch normalisation with a scale and no shift,
            "normalized" one without either (SimSiam, MoCo v3), "bias" a bias alone (MoCo), "plain" nothing (BYOL).

    Attributes:
        out_dim: length of what comes out: ``in_dim`` for 0 layers.

    Raises:
        ValueError: for a dimension below 1, layers below 0, or another end.
    """

    def __init__(
        self, in_dim: int, hidden_dim: int, out_dim: int, layers: int = 2, *, norm: bool = True, end: End = "scaled"
    ) -> None:
        super().__init__()
        if min(in_dim, hidden_dim, out_dim) < 1 or layers < 0:
            raise ValueError(
                f"a projection head needs dimensions of at least 1 and layers of at least 0; "
                f"got in_dim={in_dim}, hidden_dim={hidden_dim}, out_dim={out_dim}, layers={layers}"
            )
        if end not in get_args(End):
            raise ValueError(f"a projection head ends in one of {', '.join(get_args(End))}; got {end!r}")
        dims = [in_dim] + [hidden_dim] * (layers - 1) + [out_dim] * (layers > 0)
        steps: list[nn.Module] = []
        for inputs, outputs in pairwise(dims[:layers]):
            steps += [nn.Linear(inputs, outputs, bias=not norm)]
            steps += [nn.BatchNorm1d(outputs), nn.ReLU()] if norm else [nn.ReLU()]
        if layers > 0:
            steps.append(nn.Linear(dims[-2], dims[-1], bias=end == "bias"))
        if layers > 0 and end in ("scaled", "normalized"):
            steps.append(nn.BatchNorm1d(dims[-1], affine=end == "scaled"))
        if layers > 0 and end == "scaled":
            steps[-1].register_parameter("bias", None)
        self.layers = nn.Sequential(*steps)
        self.out_dim = dims[-1]

    def forward(self, h: Tensor) -> Tensor:
        """h: (N, in_dim) features. Returns (N, out_dim) projections, not normalised to unit length."""
        projections: Tensor = self.layers(h)
        return projections


class Prototypes(nn.Module):
    """Cosines with vectors that are learnt: a linear layer without bias whose rows are brought to unit length.

    In DINO's words a weight-normalised layer whose gains stay 1 (arXiv:2104.14294, section 3.1); SwAV has the same
    (arXiv:2006.09882, section 3.1).

    Args:
        dim: length of the vectors.
        count: how many.
    Raises:
        ValueError: for a number below 1.
    """

    def __init__(self, dim: int, count: int) -> None:
        super().__init__()
        if min(dim, count) < 1:
            raise ValueError(f"prototypes need dim and count of at least 1; got dim={dim}, count={count}")
        self.weight = nn.Parameter(torch.empty(count, dim))
        nn.init.kaiming_uniform_(self.weight, a=5**0.5)  # as torch does for a linear layer

    def forward(self, z: Tensor, *, frozen: bool = False) -> Tensor:
        """z: (..., dim). Returns (..., count) in [-1, 1]; if ``frozen``, the prototypes get no gradient."""
        weight = self.weight.detach() if frozen else self.weight
        return F.linear(F.normalize(z, dim=-1), F.normalize(weight, dim=-1))


class PrototypeHead(nn.Module):
    """DINO's head (arXiv:2104.14294, section 3.1): cosines of an MLP's output with prototypes.

    The MLP has three layers with GELU between and no batch normalisation.

    Args:
        in_dim: length of the encoder's features.
        hidden_dim: width of the MLP's two hidden layers.
        bottleneck_dim: length of its output.
        prototypes: how many.
    Raises:
        ValueError: for a number below 1.
    """

    def __init__(self, in_dim: int, hidden_dim: int, bottleneck_dim: int, prototypes: int) -> None:
        super().__init__()
        if min(in_dim, hidden_dim, bottleneck_dim) < 1:
            raise ValueError(
                f"a prototype head needs dimensions of at least 1; got in_dim={in_dim}, hidden_dim={hidden_dim}, "
                f"bottleneck_dim={bottleneck_dim}"
            )
        self.mlp = nn.Sequential(
            *(nn.Linear(in_dim, hidden_dim), nn.GELU()),
            *(nn.Linear(hidden_dim, hidden_dim), nn.GELU()),
            nn.Linear(hidden_dim, bottleneck_dim),
        )
        for layer in self.mlp:
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)
        self.prototypes = Prototypes(bottleneck_dim, prototypes)

    def forward(self, h: Tensor, *, frozen: bool = False) -> Tensor:
        """h: (..., in_dim). Returns (..., prototypes) in [-1, 1]; if ``frozen``, the prototypes get no gradient."""
        cosines: Tensor = self.prototypes(self.mlp(h), frozen=frozen)
        return cosines
