"""InfoNCE against a queue, forward and backward to the query, as MoCo trains: key and queue have no gradient."""

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
from fastssl.ops.queue_info_nce import reference  # type: ignore[attr-defined]

TEMPERATURE = 0.2
CHUNK = 8192


def chunked(query: Tensor, key: Tensor, queue: Tensor, temperature: float) -> Tensor:
    """The reference's formula over ranges of the queue, each recomputed in the backward."""

    def chunk_lse(query: Tensor, chunk: Tensor) -> Tensor:
        return (query @ chunk.T / temperature).logsumexp(1)

    lses = [
        torch.utils.checkpoint.checkpoint(chunk_lse, query, chunk, use_reentrant=False) for chunk in queue.split(CHUNK)
    ]
    positive = (query * key).sum(1) / temperature
    return (torch.stack([*lses, positive]).logsumexp(0) - positive).mean()


def attention(query: Tensor, key: Tensor, queue: Tensor) -> tuple[Tensor, Tensor]:
    """Loss and gradient from torch's fused attention with the queue as keys and values, which also returns the lse."""
    negatives = queue[None, None].to(query.dtype)
    given = query[None, None], negatives, negatives
    if not query.is_cuda:
        fused, settings = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu, ()
    elif query.dtype == torch.float32:
        fused, settings = torch.ops.aten._scaled_dot_product_efficient_attention, (None, True)
    else:
        fused, settings = torch.ops.aten._scaled_dot_product_flash_attention, ()
    mean, lse, *_ = fused(*given, *settings, scale=1 / TEMPERATURE)
    margin = (query * key).sum(1) / TEMPERATURE - lse[0, 0, : len(query)]
    share = torch.sigmoid(-margin)[:, None] / (TEMPERATURE * len(query))
    return -logsigmoid(margin).mean(), share * (mean[0, 0] - key)


def inputs(n: int, k: int, d: int, dtype: torch.dtype) -> list[Tensor]:
    generator = where.generator()
    query, noise, queue = (torch.randn(rows, d, generator=generator) for rows in (n, n, k))
    return [normalize(x, dim=1).to(dtype) for x in (query, query + noise, queue)]


def forward_backward(function: Callable[..., Tensor], n: int, k: int, d: int, dtype: torch.dtype) -> Work:
    query, key, queue = inputs(n, k, d, dtype)
    query.requires_grad_()

    def work() -> tuple[Tensor, ...]:
        query.grad = None
        loss = function(query, key, queue, temperature=TEMPERATURE)
        loss.backward()
        return loss.detach(), query.grad

    return work


def by_attention(n: int, k: int, d: int, dtype: torch.dtype) -> Work:
    return functools.partial(attention, *inputs(n, k, d, dtype))


def lightly(n: int, k: int, d: int, dtype: torch.dtype) -> Work:
    """lightly's own class, which also enqueues the keys; they are taken out again, so each call sees the same queue.

    It normalises inside, so that its gradient is another one: judged by the loss alone.
    """
    criterion = rivals.load("lightly.loss").NTXentLoss(temperature=TEMPERATURE, memory_bank_size=(k, d))
    bank, queue = criterion.memory_bank, inputs(n, k, d, dtype)[2]
    bank.bank = queue.clone()

    def loss(query: Tensor, key: Tensor, queue: Tensor, temperature: float) -> Tensor:
        bank.bank[:n] = queue[:n]
        bank.bank_ptr.zero_()
        found: Tensor = criterion(query, key)
        return found

    work = forward_backward(loss, n, k, d, dtype)
    return lambda: work()[:1]


def exact(n: int, k: int, d: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    def double(query: Tensor, key: Tensor, queue: Tensor, temperature: float) -> Tensor:
        return reference(query.double(), key.double(), queue.double(), temperature)

    return forward_backward(double, n, k, d, dtype)()


def providers(n: int, k: int, d: int, dtype: torch.dtype) -> dict[str, Callable[[], Work]]:
    made = {
        name: functools.partial(lambda function: forward_backward(function(), n, k, d, dtype), function)
        for name, function in forms(ops.queue_info_nce, reference, chunked, dtype).items()
    }
    return {
        **made,
        "torch attention, V=K": functools.partial(by_attention, n, k, d, dtype),
        "lightly NTXentLoss, memory bank": functools.partial(lightly, n, k, d, dtype),
    }


def cases() -> list[Case]:
    return [
        Case(
            op="queue_info_nce",
            shape=f"N={n} K={k} d={d}",
            dtype=str(dtype).removeprefix("torch."),
            providers=providers(n, k, d, dtype),
            exact=functools.partial(exact, n, k, d, dtype),
            operations=4 * n * k * d,
            peak=True,
        )
        for n, k, d, dtype in where.sizes(
            cpu=((64, 1024, 128, torch.float32), (256, 65536, 128, torch.float32), (256, 65536, 128, torch.bfloat16)),
            gpu=((256, 65536, 128, torch.bfloat16), (256, 65536, 128, torch.float32)),
            small=((8, 64, 16, torch.float32),),
        )
    ]


# where the kernel is timed against the reference for the choice between them
CROSSOVER = [{"pairs": 64 * k, "d": d} for k in (16, 64, 256, 1024, 4096) for d in (8, 64, 128, 512, 2048)]


def backend(name: str, pairs: int, d: int) -> Work:
    return forward_backward(functools.partial(ops.queue_info_nce, backend=name), 64, pairs // 64, d, torch.float32)
