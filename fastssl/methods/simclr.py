"""SimCLR: contrast two views of each image against all others of the batch (Chen et al., arXiv:2002.05709).

Recipe:
    fastssl pretrain simclr --data clipart
    fastssl pretrain simclr --config benchmarks/recipes/cifar10/simclr.yaml --data cifar10
        CIFAR-10 on two CPU cores: 11.2 minutes, kNN 57.1 % (untrained 28.4 %); docs/scores.md.
    A large batch by LARS, the paper's recipe (0.3 of learning rate for each 256 images, section 2.2):
    fastssl pretrain simclr --data photos --image_size 224 --encoder resnet50 --batch_size 4096 --simclr.chunk 512
        --simclr.temperature 0.1 --epochs 100 --optim.name lars --optim.lr 4.8 --optim.weight_decay 1e-6
        --optim.warmup_epochs 10 --precision bfloat16
    Not yet run at that size.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fastssl.data import plans
from fastssl.errors import require_at_least, require_positive
from fastssl.losses import NTXent
from fastssl.methods.base import Method
from fastssl.models import feature_dim
from fastssl.models.chunked import in_chunks
from fastssl.models.heads import ProjectionHead


@dataclass(frozen=True)
class SimCLRConfig:
    """Hyper-parameters of SimCLR.

    Attributes:
        temperature: divides the cosine similarities; the paper's best is 0.5 on CIFAR-10 (appendix B.9), 0.1 on
            ImageNet (table 5).
        hidden_dim: width of the head's hidden layers; null is the width of the features, as in the paper.
        out_dim: length of the projections that are compared.
        head_layers: 0 compares the features themselves, 1 is a linear head, 2 and more an MLP (section 4.2).
        chunk: images, counted over both views, of which the encoder holds activations at a time, for a batch that does
            not fit otherwise, at the cost of a second forward pass (gradient caching, arXiv:2101.06983); null is the
            batch. Of an encoder without batch normalisation, as a Vision Transformer, loss and gradient stay those of
            the batch; batch normalisation sees a chunk at a time. Head and loss see the whole batch.
    """

    temperature: float = 0.5
    hidden_dim: int | None = None
    out_dim: int = 128
    head_layers: int = 2
    chunk: int | None = None

    def __post_init__(self) -> None:
        require_positive("SimCLR", self, "temperature")
        require_at_least("SimCLR", self, hidden_dim=1, out_dim=1, head_layers=0, chunk=2)


class SimCLR(Method):
    """SimCLR (arXiv:2002.05709, algorithm 1). The features h are kept, the projections z thrown away."""

    Config = SimCLRConfig
    compared = "head"

    def __init__(self, encoder: nn.Module, config: SimCLRConfig) -> None:
        super().__init__(encoder, config)
        dim = feature_dim(encoder)
        hidden_dim = dim if config.hidden_dim is None else config.hidden_dim
        self.head = ProjectionHead(dim, hidden_dim, config.out_dim, config.head_layers)
        self.loss = NTXent(config.temperature)

    @classmethod
    def view_plan(cls, size: int) -> plans.ViewPlan:
        """Two views by crop, flip, colour and blur (appendix A)."""
        return plans.simclr(size)

    def forward(self, views: list[Tensor]) -> Tensor:
        """views: two (N, 3, H, W) batches. Returns the scalar loss; batch norm sees both views at once."""
        h = in_chunks(self.encoder, torch.cat(views), self.config.chunk)
        z0, z1 = self.head(h).chunk(2)
        loss: Tensor = self.loss(z0, z1)
        return loss

    def metrics(self, loss: float, batch_size: int) -> dict[str, float]:
        """``mutual_information_bound``: two views share at least log(2N - 1) - loss nats (arXiv:1807.03748, 2.3)."""
        return {"mutual_information_bound": math.log(2 * batch_size - 1) - loss}
