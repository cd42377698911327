"""NT-Xent, forward and backward: rows = 2N."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import normalize

from benchmarks import rivals, where
from benchmarks.harness import Case, Work
from benchmarks.losses import forms
from fastssl import ops
from fastssl.ops._crossover import storable
from fastssl.ops.nt_xent import reference  # type: ignore[attr-defined]

TEMPERATURE = 0.1
CHUNK, MOST_CHUNKS = 512, 16
LARGE = 4096


def chunked(z0: Tensor, z1: Tensor, temperature: float) -> Tensor:
    """The reference's formula over chunks of rows, each recomputed in the backward: what plain torch can save."""
    rows = torch.cat([z0, z1])
    n = len(rows)
    size = max(CHUNK, n // MOST_CHUNKS)

    def chunk_loss(chunk: Tensor, start: int) -> Tensor:
        i = torch.arange(start, start + len(chunk), device=rows.device)
        logits = (chunk @ rows.T / temperature).masked_fill(
            torch.arange(n, device=i.device) == i[:, None], float("-inf")
        )
        return torch.nn.functional.cross_entropy(logits, (i + n // 2) % n, reduction="sum")

    losses = [
        torch.utils.checkpoint.checkpoint(chunk_loss, rows[start : start + size], start, use_reentrant=False)
        for start in range(0, n, size)
    ]
    return torch.stack(losses).sum() / n


def inputs(n: int, dtype: torch.dtype, d: int = 128) -> list[Tensor]:
    generator = where.generator()
    first = torch.randn(n, d, generator=generator)
    second = first + torch.randn(n, d, generator=generator)
    return [normalize(z, dim=1).to(dtype) for z in (first, second)]


def forward_backward(function: Callable[..., Tensor], n: int, dtype: torch.dtype, d: int = 128) -> Work:
    z0, z1 = (z.requires_grad_() for z in inputs(n, dtype, d))

    def work() -> tuple[Tensor, ...]:
        z0.grad = z1.grad = None
        loss = function(z0, z1, temperature=TEMPERATURE)
        loss.backward()
        return loss.detach(), z0.grad, z1.grad

    return work


def exact(n: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    formula = chunked if 2 * n > 16384 else reference
    return forward_backward(lambda z0, z1, temperature: formula(z0.double(), z1.double(), temperature), n, dtype)()


def lightly(n: int, dtype: torch.dtype) -> Work:
    """lightly's own class. It normalises inside, so that its gradient is another one: judged by the loss alone."""
    criterion = rivals.load("lightly.loss").NTXentLoss(temperature=TEMPERATURE)
    work = forward_backward(lambda z0, z1, temperature: criterion(z0, z1), n, dtype)
    return lambda: work()[:1]


def providers(n: int, dtype: torch.dtype) -> dict[str, Callable[[], Work]]:
    functions = forms(ops.nt_xent, reference, chunked, dtype)
    if n > LARGE:
        del functions["torch eager again"]  # seconds a call
    ours_and_torch = {
        name: functools.partial(lambda function: forward_backward(function(), n, dtype), function)
        for name, function in functions.items()
    }
    return {**ours_and_torch, "lightly NTXentLoss": functools.partial(lightly, n, dtype)}


def cases() -> list[Case]:
    return [
        Case(
            op="nt_xent",
            shape=f"rows={rows} d=128",
            dtype=str(dtype).removeprefix("torch."),
            providers=providers(rows // 2, dtype),
            exact=functools.partial(exact, rows // 2, dtype),
            # logits and softmax are symmetric: half of each, then one product with the rows
            operations=3 * rows**2 * 128,
            exponentials=rows**2 / 2,
            recompute=rows**2 * 128,
            peak=True,
        )
        for rows, dtype in where.sizes(
            cpu=(
                (256, torch.float32),
                (1024, torch.float32),
                (4096, torch.float32),
                (4096, torch.bfloat16),
                (16384, torch.float32),
            ),
            gpu=(
                (16384, torch.bfloat16),
                (65536, torch.bfloat16),
                (4096, torch.bfloat16),
                (4096, torch.float32),
            ),
            small=((32, torch.bfloat16),),
        )
    ]


# where the kernel is timed against the reference for the choice between them
CROSSOVER = [
    {"rows": rows, "d": d}
    for rows in (2, 16, 64, 128, 256, 512, 1024, 4096)
    for d in (8, 128, 512, 1024, 2048, 8192)
    if storable(rows**2, rows * d)
]


def backend(name: str, rows: int, d: int) -> Work:
    return forward_backward(functools.partial(ops.nt_xent, backend=name), rows // 2, torch.float32, d)
