"""lightly's projection heads, with its names in the state dict."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import normalize


class ProjectionHead(nn.Module):
    """For each block (inputs, outputs, norm or None, activation or None[, bias]) a linear layer and these."""

    def __init__(self, blocks: Sequence[tuple[Any, ...]]) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inputs, outputs, norm, activation, *bias in blocks:
            layers.append(nn.Linear(inputs, outputs, bias=bias[0] if bias else norm is None))
            layers += [layer for layer in (norm, activation) if layer is not None]
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """x: (N, inputs)."""
        projection: Tensor = self.layers(x)
        return projection


class SimCLRProjectionHead(ProjectionHead):
    """SimCLR's: two layers in the first paper, three in the second."""

    def __init__(
        self,
        input_dim: int = 2048,
        hidden_dim: int = 2048,
        output_dim: int = 128,
        num_layers: int = 2,
        batch_norm: bool = True,
    ) -> None:
        widths = [input_dim, *[hidden_dim] * max(1, num_layers - 1), output_dim]
        super().__init__(
            [
                (
                    widths[i],
                    widths[i + 1],
                    nn.BatchNorm1d(widths[i + 1]) if batch_norm else None,
                    nn.ReLU() if i < len(widths) - 2 else None,
                )
                for i in range(len(widths) - 1)
            ]
        )


class MoCoProjectionHead(SimCLRProjectionHead):
    """MoCo's: as SimCLR's, without normalisation by default."""

    def __init__(
        self,
        input_dim: int = 2048,
        hidden_dim: int = 2048,
        output_dim: int = 128,
        num_layers: int = 2,
        batch_norm: bool = False,
    ) -> None:
        super().__init__(input_dim, hidden_dim, output_dim, num_layers, batch_norm)


class DINOProjectionHead(ProjectionHead):
    """DINO's: three layers, unit length, and a weight-normalised layer to the prototypes."""

    def __init__(
        self,
        input_dim: int = 2048,
        hidden_dim: int = 2048,
        bottleneck_dim: int = 256,
        output_dim: int = 65536,
        batch_norm: bool = False,
        freeze_last_layer: int = -1,
        norm_last_layer: bool = True,
    ) -> None:
        def norm() -> nn.Module | None:
            return nn.BatchNorm1d(hidden_dim) if batch_norm else None

        super().__init__(
            [
                (input_dim, hidden_dim, norm(), nn.GELU()),
                (hidden_dim, hidden_dim, norm(), nn.GELU()),
                (hidden_dim, bottleneck_dim, None, None),
            ]
        )
        self.apply(_initialised)
        self.freeze_last_layer = freeze_last_layer
        # the older form of weight normalisation, whose names lightly's and DINO's checkpoints have
        self.last_layer = nn.utils.weight_norm(nn.Linear(bottleneck_dim, output_dim, bias=False))
        gain = dict(self.last_layer.named_parameters())["weight_g"]
        nn.init.ones_(gain)
        gain.requires_grad = not norm_last_layer

    def cancel_last_layer_gradients(self, current_epoch: int) -> None:
        """The last layer stays as it is in the first ``freeze_last_layer`` epochs: call it after the backward."""
        if current_epoch < self.freeze_last_layer:
            for parameter in self.last_layer.parameters():
                parameter.grad = None

    def forward(self, x: Tensor) -> Tensor:
        """x: (N, input_dim). Returns (N, output_dim)."""
        logits: Tensor = self.last_layer(normalize(self.layers(x), dim=-1))
        return logits


def _initialised(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
