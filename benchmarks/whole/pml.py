"""pytorch-metric-learning's loss in a step of SimCLR: embeddings of both views and labels in, forward and backward."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from benchmarks import rivals, where
from benchmarks.harness import Case
from benchmarks.losses import forward_backward, whole
from fastssl.compat.pml import NTXentLoss
from fastssl.ops.nt_xent import reference  # type: ignore[attr-defined]

TEMPERATURE = 0.07  # its default


def inputs(n: int, d: int) -> list[Tensor]:
    """The second views after the first, and which image each is of."""
    generator = where.generator()
    first, noise = (torch.randn(n, d, generator=generator) for _ in range(2))
    return [torch.cat([first, first + noise]).requires_grad_(), torch.arange(n).repeat(2)]


def exact(embeddings: Tensor, _: Tensor) -> Tensor:
    return reference(*normalize(embeddings.double(), dim=1).chunk(2), TEMPERATURE)


def simclr(n: int, d: int) -> Case:
    return Case(
        op="pml",
        shape=f"NTXentLoss embeddings={2 * n} d={d}",
        dtype="float32",
        providers=whole(
            "pytorch-metric-learning NTXentLoss",
            NTXentLoss,
            lambda: rivals.load("pytorch_metric_learning.losses").NTXentLoss(),
            lambda: inputs(n, d),
        ),
        exact=lambda: forward_backward(exact, *inputs(n, d))(),
        peak=True,
    )


def cases() -> list[Case]:
    # of 1024 images theirs asks for 34 GB
    return [simclr(n, d) for n, d in where.sizes(cpu=((128, 128), (256, 128)), small=((8, 16),))]
