"""CIELAB to sRGB of a batch of images."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from benchmarks import where
from benchmarks.harness import OURS, Case, Work
from fastssl import ops
from fastssl.ops.lab_to_rgb import reference  # type: ignore[attr-defined]


def inputs(n: int, size: int) -> Tensor:
    return ops.rgb_to_lab(torch.rand(n, 3, size, size, generator=where.generator()))


def ours(n: int, size: int) -> Work:
    lab = inputs(n, size)
    return lambda: (ops.lab_to_rgb(lab),)


def eager(n: int, size: int) -> Work:
    lab = inputs(n, size)
    return lambda: (reference(lab),)


def compiled(n: int, size: int) -> Work:
    lab, function = inputs(n, size), where.compiled(reference)
    return lambda: (function(lab),)


def kornia(n: int, size: int) -> Work:
    from kornia.color import lab_to_rgb

    lab = inputs(n, size)
    return lambda: (lab_to_rgb(lab),)


def scikit_image(n: int, size: int) -> Work:
    """On its own layout, channels last."""
    from skimage.color import lab2rgb

    lab = inputs(n, size).movedim(1, -1).contiguous().numpy()
    return lambda: (torch.from_numpy(lab2rgb(lab)).movedim(-1, 1),)


def cases() -> list[Case]:
    makers = {OURS: ours, "reference": eager, "torch.compile": compiled, "kornia": kornia}
    makers |= where.only_on_cpu({"scikit-image": scikit_image})
    return [
        Case(
            op="lab_to_rgb",
            shape=f"{n} x 3 x {size} x {size}",
            dtype="float32",
            providers={name: functools.partial(make, n, size) for name, make in makers.items()},
            exact=functools.partial(lambda n, size: (reference(inputs(n, size).double()),), n, size),
            bytes_moved=n * size**2 * 24,
        )
        for n, size in where.sizes(cpu=((1, 32), (64, 224)), gpu=((64, 224), (256, 224)), small=((2, 8),))
    ]
