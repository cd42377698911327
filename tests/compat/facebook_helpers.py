"""What the tests of Facebook's names share: a small encoder, random rows, and what a network has learnt."""

from __future__ import annotations

import io

import torch
from torch import Tensor, nn


class Encoder(nn.Module):
    """Ends in a linear layer with the name that is given, as torchvision's ResNets and timm's transformers do."""

    def __init__(self, num_classes: int, last: str = "fc") -> None:
        super().__init__()
        self.body, self.last = nn.Sequential(nn.Linear(6, 9), nn.ReLU()), last
        setattr(self, last, nn.Linear(9, num_classes))

    def forward(self, x: Tensor) -> Tensor:
        return getattr(self, self.last)(self.body(x))


def transformer(num_classes: int) -> Encoder:
    return Encoder(num_classes, "head")


def rows(seed: int, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def followed(target: nn.Module, source: nn.Module, m: float) -> None:
    for ours, theirs in zip(target.parameters(), source.parameters(), strict=True):
        ours.data = m * ours.data + (1 - m) * theirs.data


def saved(module: nn.Module) -> dict[str, Tensor]:
    file = io.BytesIO()
    torch.save(module.state_dict(), file)
    file.seek(0)
    return torch.load(file)


def gradients(module: nn.Module) -> list[Tensor]:
    found = [parameter.grad.clone() for parameter in module.parameters()]
    module.zero_grad()
    return found
