"""SigLIP's loss of N pairs, forward and backward to both sides."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, normalize

from benchmarks import rivals, where
from benchmarks.harness import Case, Work
from benchmarks.losses import forms
from fastssl import ops
from fastssl.ops.siglip_loss import reference  # type: ignore[attr-defined]

SCALES = {"logit_scale": 10.0, "logit_bias": -10.0}
CHUNK, MOST_CHUNKS = 512, 16


def chunked(a: Tensor, b: Tensor, logit_scale: float, logit_bias: float) -> Tensor:
    """The formula over chunks of rows, each recomputed in the backward: what plain torch can save."""

    def chunk_loss(chunk: Tensor, others: Tensor, start: int) -> Tensor:
        own = torch.arange(start, start + len(chunk), device=chunk.device)
        signs = 2.0 * (torch.arange(len(others), device=chunk.device) == own[:, None]) - 1
        return -logsigmoid(signs * (logit_scale * chunk @ others.T + logit_bias)).sum()

    size = max(CHUNK, len(a) // MOST_CHUNKS)
    losses = [
        torch.utils.checkpoint.checkpoint(chunk_loss, chunk, b, i * size, use_reentrant=False)
        for i, chunk in enumerate(a.split(size))
    ]
    return torch.stack(losses).sum() / len(a)


def forward_backward(function: Callable[..., Tensor], n: int, d: int, dtype: torch.dtype) -> Work:
    generator = where.generator()
    first, noise = (torch.randn(n, d, generator=generator) for _ in range(2))
    a, b = (normalize(x, dim=1).to(dtype).requires_grad_() for x in (first, first + noise))

    def work() -> tuple[Tensor, ...]:
        a.grad = b.grad = None
        loss = function(a, b, **SCALES)
        loss.backward()
        return loss.detach(), a.grad, b.grad

    return work


def exact(n: int, d: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    return forward_backward(lambda a, b, **scales: reference(a.double(), b.double(), **scales), n, d, dtype)()


def providers(n: int, d: int, dtype: torch.dtype) -> dict[str, Callable[[], Work]]:
    functions = {
        **forms(ops.siglip_loss, reference, chunked, dtype),
        "open_clip SigLipLoss": lambda: rivals.load("open_clip.loss").SigLipLoss(),
    }
    return {
        name: functools.partial(lambda function: forward_backward(function(), n, d, dtype), function)
        for name, function in functions.items()
    }


def cases() -> list[Case]:
    return [
        Case(
            op="siglip_loss",
            shape=f"N={n} d={d}",
            dtype=str(dtype).removeprefix("torch."),
            providers=providers(n, d, dtype),
            exact=functools.partial(exact, n, d, dtype),
            operations=6 * n * n * d,
            peak=True,
        )
        for n, d, dtype in where.sizes(
            cpu=(
                (256, 512, torch.float32),
                (4096, 128, torch.float32),
                (4096, 512, torch.float32),
                (4096, 512, torch.bfloat16),
            ),
            gpu=((4096, 512, torch.float32), (4096, 512, torch.bfloat16), (16384, 512, torch.bfloat16)),
            small=((16, 8, torch.bfloat16),),
        )
    ]


# where the kernel is timed against the reference for the choice between them
CROSSOVER = [{"n": n, "d": d} for n in (8, 32, 64, 128, 256, 512) for d in (8, 64, 128, 512, 2048)]


def backend(name: str, n: int, d: int) -> Work:
    return forward_backward(functools.partial(ops.siglip_loss, backend=name), n, d, torch.float32)
