"""Block masks of a batch, as BEiT draws them: 75 of the 14 x 14 patches of an image of 224 pixels."""

from __future__ import annotations

import functools
import math
import random
from collections.abc import Callable

import torch

from benchmarks import where
from benchmarks.harness import OURS, Case, Work
from fastssl import ops
from fastssl.ops.block_masking import ATTEMPTS, _ratios, reference  # type: ignore[attr-defined]

GRID, MASKED, MIN_BLOCK, ASPECT = 14, 75, 16, (0.3, 1 / 0.3)


def noise_of(batch: int) -> torch.Tensor:
    return torch.rand(batch, 4 * ATTEMPTS + GRID**2, generator=where.generator())


def ours(batch: int, draw: bool) -> Work:
    given = {"device": where.device()} if draw else {"noise": noise_of(batch)}
    return lambda: ops.block_masking(batch, GRID, MASKED, min_block=MIN_BLOCK, aspect=ASPECT, **given)


def batched(compiled: bool, batch: int, draw: bool) -> Work:
    given, counts, ratios = noise_of(batch), torch.full((batch,), MASKED), _ratios(*ASPECT)
    function = where.compiled(reference) if compiled else reference
    return lambda: function(torch.rand_like(given) if draw else given, counts, GRID, GRID, MIN_BLOCK, GRID**2, ratios)


def add_block(mask: list[list[bool]], left: int) -> int:
    """Up to ten tries at a rectangle; the patches that it added."""
    for _ in range(10):
        area = random.uniform(MIN_BLOCK, left)
        ratio = math.exp(random.uniform(*map(math.log, ASPECT)))
        rows, columns = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if rows >= GRID or columns >= GRID:
            continue
        top, start = random.randint(0, GRID - rows), random.randint(0, GRID - columns)
        block = [(y, x) for y in range(top, top + rows) for x in range(start, start + columns) if not mask[y][x]]
        if 0 < len(block) <= left:
            for y, x in block:
                mask[y][x] = True
            return len(block)
    return 0


def python_loop(batch: int, draw: bool) -> Work:
    """A sample at a time in a loop of Python, as loaders of BEiT, iBOT and DINOv2 do it; at most as many patches."""

    def work() -> torch.Tensor:
        masks = []
        for _ in range(batch):
            mask, left = [[False] * GRID for _ in range(GRID)], MASKED
            while left > 0 and (added := add_block(mask, left)):
                left -= added
            masks.append(mask)
        return torch.tensor(masks, device=where.device())

    return work


def cases() -> list[Case]:
    makers: dict[str, Callable[[int, bool], Work]] = {
        OURS: ours,
        "reference": functools.partial(batched, False),
        "torch.compile": functools.partial(batched, True),
        "Python loop": python_loop,
    }
    return [
        Case(
            op="block_masking",
            shape=f"{MASKED} of {GRID} x {GRID} patches, batch={batch}{' and the noise' if draw else ''}",
            dtype="float32",
            providers={
                name: functools.partial(make, batch, draw)
                for name, make in makers.items()
                if draw or name != "Python loop"  # which always draws
            },
            bytes_moved=batch * (4 * (4 * ATTEMPTS + GRID**2) + GRID**2),
        )
        for batch, draw in where.sizes(
            cpu=((256, False), (256, True), (8, True)),
            gpu=((256, False), (256, True), (1024, False)),
            small=((2, True),),
        )
    ]
