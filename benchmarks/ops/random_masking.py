"""MAE's masking of a batch: 196 patches are a 224 x 224 image in patches of 16."""

from __future__ import annotations

import functools

import torch

from benchmarks import where
from benchmarks.harness import OURS, Case, Work
from fastssl import ops
from fastssl.ops.random_masking import kept_patches, reference  # type: ignore[attr-defined]

RATIO = 0.75


def ours(batch: int, length: int) -> Work:
    noise = torch.rand(batch, length, generator=where.generator())
    return lambda: ops.random_masking(batch, length, RATIO, noise=noise)


def two_argsorts(batch: int, length: int) -> Work:
    noise = torch.rand(batch, length, generator=where.generator())
    return lambda: reference(noise, kept_patches(length, RATIO))


def compiled(batch: int, length: int) -> Work:
    noise = torch.rand(batch, length, generator=where.generator())
    function = where.compiled(reference)
    return lambda: function(noise, kept_patches(length, RATIO))


def ours_drawing(batch: int, length: int) -> Work:
    return lambda: ops.random_masking(batch, length, RATIO, device=where.device())


def two_argsorts_drawing(batch: int, length: int) -> Work:
    return lambda: reference(torch.rand(batch, length, device=where.device()), kept_patches(length, RATIO))


def cases() -> list[Case]:
    rivals = {OURS: ours, "torch two argsorts": two_argsorts, "torch.compile": compiled}
    drawing = {OURS: ours_drawing, "torch two argsorts": two_argsorts_drawing}
    return [
        Case(
            op="random_masking",
            shape=f"batch={batch} length={length}{' and the noise' if draw else ''}",
            dtype="float32",
            providers={
                name: functools.partial(make, batch, length) for name, make in (drawing if draw else rivals).items()
            },
            bytes_moved=batch * (length * 16 + kept_patches(length, RATIO) * 8),
        )
        for batch, length, draw in where.sizes(
            cpu=((256, 196, False), (256, 196, True), (1024, 196, False), (8, 196, False)),
            gpu=((256, 196, False), (256, 196, True), (4096, 196, False)),
            small=((2, 16, False),),
        )
    ]
