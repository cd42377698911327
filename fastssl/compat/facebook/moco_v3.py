"""facebookresearch/moco-v3: ``from fastssl.compat.facebook.moco_v3 import MoCo_ResNet``."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, nn

from fastssl import losses
from fastssl.compat._processes import everyone
from fastssl.compat.lightly import deactivate_requires_grad, update_momentum
from fastssl.ops import _check

# for the last layer of an encoder: how many layers take its place, and whether the predictor ends in a batch norm
HEADS = {"fc": (2, False), "head": (3, True)}


class MoCo(nn.Module):
    """An encoder with a predictor, and the encoder's moving average (MoCo v3, arXiv:2104.02057, algorithm 1).

    The encoder's last linear layer, ``fc`` (ResNets) or ``head`` (vision transformers), becomes the projector;
    ``MoCo_ResNet`` and ``MoCo_ViT`` take the one or the other alone. Runs on one process without torch.distributed, and
    where it is initialised the keys of all its processes are candidates. Under ``eval()`` the momentum encoder stays.
    Parameters and buffers have the names of the original's checkpoints.

    Args:
        base_encoder: called with ``num_classes=mlp_dim``, gives an encoder; twice.
        dim: features that are compared.
        mlp_dim: width of projector and predictor.
        T: temperature, finite, > 0.
    Raises:
        ValueError: for another temperature, or an encoder without such a last layer.
    """

    predictor: nn.Module
    _ends: tuple[str, ...] = ("fc", "head")

    def __init__(
        self, base_encoder: Callable[..., nn.Module], dim: int = 256, mlp_dim: int = 4096, T: float = 1.0
    ) -> None:
        super().__init__()
        self.T = _check.positive(type(self).__name__, "T", T)
        self.base_encoder = base_encoder(num_classes=mlp_dim)
        self.momentum_encoder = base_encoder(num_classes=mlp_dim)
        self._build_projector_and_predictor_mlps(dim, mlp_dim)
        deactivate_requires_grad(self.momentum_encoder)
        update_momentum(self.base_encoder, self.momentum_encoder, 0.0)

    def forward(self, x1: Tensor, x2: Tensor, m: float) -> Tensor:
        """x1, x2: (N, ...), two views of the same images; m: momentum, in [0, 1].

        Returns the scalar loss: both views' predictions against the other's keys, each times 2 T as in the original.
        """
        q1, q2 = (self.predictor(self.base_encoder(x)) for x in (x1, x2))
        with torch.no_grad():
            if self.training:
                self._update_momentum_encoder(m)
            k1, k2 = (self.momentum_encoder(x) for x in (x1, x2))
        return self.contrastive_loss(q1, k2) + self.contrastive_loss(q2, k1)

    def contrastive_loss(self, q: Tensor, k: Tensor) -> Tensor:
        """q, k: (N, dim), normalised inside. Returns 2 T times InfoNCE."""
        return losses.info_nce_loss(q, k, temperature=self.T, group=everyone()) * (2 * self.T)

    @torch.no_grad()
    def _update_momentum_encoder(self, m: float) -> None:
        update_momentum(self.base_encoder, self.momentum_encoder, m)

    def _build_projector_and_predictor_mlps(self, dim: int, mlp_dim: int) -> None:
        ends = [name for name in self._ends if isinstance(getattr(self.base_encoder, name, None), nn.Linear)]
        if not ends:
            raise ValueError(
                f"{type(self).__name__}: the encoder's last layer must be linear and called {' or '.join(self._ends)}; "
                f"got {type(self.base_encoder).__name__} without one"
            )
        layers, normed = HEADS[ends[0]]
        width = getattr(self.base_encoder, ends[0]).in_features
        for encoder in (self.base_encoder, self.momentum_encoder):
            setattr(encoder, ends[0], self._build_mlp(layers, width, mlp_dim, dim))
        self.predictor = self._build_mlp(2, dim, mlp_dim, dim, normed)

    def _build_mlp(
        self, num_layers: int, input_dim: int, mlp_dim: int, output_dim: int, last_bn: bool = True
    ) -> nn.Sequential:
        """Linear layers without bias, each followed by a batch norm (the last by one without weights) and a ReLU."""
        widths = [input_dim, *[mlp_dim] * (num_layers - 1), output_dim]
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise(widths[:-1]):
            layers += [nn.Linear(inputs, outputs, bias=False), nn.BatchNorm1d(outputs), nn.ReLU(inplace=True)]
        layers.append(nn.Linear(widths[-2], output_dim, bias=False))
        if last_bn:
            layers.append(nn.BatchNorm1d(output_dim, affine=False))
        return nn.Sequential(*layers)


class MoCo_ResNet(MoCo):
    """For encoders that end in ``fc``."""

    _ends = ("fc",)


class MoCo_ViT(MoCo):
    """For encoders that end in ``head``."""

    _ends = ("head",)
