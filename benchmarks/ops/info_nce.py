"""InfoNCE of N queries against N keys, forward and backward to both."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from benchmarks import where
from benchmarks.harness import Case, Work
from benchmarks.losses import FUSED, forms
from fastssl import ops
from fastssl.ops.info_nce import reference  # type: ignore[attr-defined]

TEMPERATURE = 0.1
CHUNK, MOST_CHUNKS = 512, 16
LARGE = 65536  # the N x M logits of plain torch do not fit into memory


def chunked(queries: Tensor, keys: Tensor, *, temperature: float) -> Tensor:
    """The reference's formula over chunks of queries, each recomputed in the backward: what plain torch can save."""

    def chunk_loss(chunk: Tensor, keys: Tensor, start: int) -> Tensor:
        own = torch.arange(start, start + len(chunk), device=chunk.device)
        return cross_entropy(chunk @ keys.T / temperature, own, reduction="sum")

    size = max(CHUNK, len(queries) // MOST_CHUNKS)
    losses = [
        torch.utils.checkpoint.checkpoint(chunk_loss, chunk, keys, i * size, use_reentrant=False)
        for i, chunk in enumerate(queries.split(size))
    ]
    return torch.stack(losses).sum() / len(queries)


def forward_backward(function: Callable[..., Tensor], n: int, d: int, dtype: torch.dtype) -> Work:
    generator = where.generator()
    first, noise = (torch.randn(n, d, generator=generator) for _ in range(2))
    queries, keys = (normalize(x, dim=1).to(dtype).requires_grad_() for x in (first, first + noise))

    def work() -> tuple[Tensor, ...]:
        queries.grad = keys.grad = None
        loss = function(queries, keys, temperature=TEMPERATURE)
        loss.backward()
        return loss.detach(), queries.grad, keys.grad

    return work


def exact(n: int, d: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    formula = chunked if n >= LARGE else reference
    return forward_backward(
        lambda q, k, temperature: formula(q.double(), k.double(), temperature=temperature), n, d, dtype
    )()


def providers(n: int, d: int, dtype: torch.dtype) -> dict[str, Callable[[], Work]]:
    rivals = {**forms(ops.info_nce, reference, chunked, dtype), **where.only_on_gpu(FUSED)}
    if n >= LARGE:
        del rivals["torch eager again"]
    return {
        name: functools.partial(lambda function: forward_backward(function(), n, d, dtype), function)
        for name, function in rivals.items()
    }


def cases() -> list[Case]:
    return [
        Case(
            op="info_nce",
            shape=f"N=M={n} d={d}",
            dtype=str(dtype).removeprefix("torch."),
            providers=providers(n, d, dtype),
            exact=functools.partial(exact, n, d, dtype),
            operations=6 * n * n * d,
            peak=True,
        )
        for n, d, dtype in where.sizes(
            cpu=(
                (256, 128, torch.float32),
                (4096, 128, torch.float32),
                (4096, 128, torch.bfloat16),
                (LARGE, 64, torch.float32),
            ),
            gpu=((16384, 128, torch.bfloat16), (LARGE, 128, torch.bfloat16), (4096, 128, torch.float32)),
            small=((16, 8, torch.bfloat16),),
        )
    ]


# where the kernel is timed against the reference for the choice between them
CROSSOVER = [{"pairs": n * n, "d": d} for n in (8, 32, 64, 128, 256, 512) for d in (8, 64, 128, 512, 2048)]


def backend(name: str, pairs: int, d: int) -> Work:
    return forward_backward(functools.partial(ops.info_nce, backend=name), math.isqrt(pairs), d, torch.float32)
