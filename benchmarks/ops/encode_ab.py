"""Soft assignment of chroma to the 313 bins of colorization."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from benchmarks import rivals, where
from benchmarks.harness import OURS, Case, Work
from fastssl import ops
from fastssl.ops.encode_ab import NEAREST, SIGMA, reference  # type: ignore[attr-defined]


@where.kept
def inputs(n: int, size: int) -> Tensor:
    """Colours that vary smoothly with some noise, as those of photographs."""
    generator = where.generator()
    smooth = torch.nn.functional.interpolate(torch.rand(n, 3, 8, 8, generator=generator), (size, size), mode="bicubic")
    rgb = smooth + 0.05 * torch.randn(n, 3, size, size, generator=generator)
    return ops.rgb_to_lab(rgb.clamp(0, 1))[:, 1:].contiguous()


def ours(n: int, size: int) -> Work:
    ab, bins = inputs(n, size), ops.gamut_bins()
    return lambda: (ops.encode_ab(ab, bins)[1],)


def eager(n: int, size: int) -> Work:
    ab, bins = inputs(n, size), ops.gamut_bins()
    return lambda: (reference(ab, bins)[1],)


def topk(ab: Tensor, bins: Tensor) -> tuple[Tensor, Tensor]:
    """The formula without the rule for ties, an image at a time."""
    distance, ids = torch.cdist(ab.movedim(0, -1).reshape(-1, 2), bins).topk(NEAREST, dim=1, largest=False)
    weights = (-(distance**2) / (2 * SIGMA**2)).softmax(dim=1)
    return ids.T.reshape(NEAREST, *ab.shape[1:]), weights.T.reshape(NEAREST, *ab.shape[1:])


def per_image(n: int, size: int, compiled: bool) -> Work:
    ab, bins = inputs(n, size), ops.gamut_bins()
    function = where.compiled(topk) if compiled else topk

    def work() -> tuple[Tensor, ...]:
        found = [function(image, bins) for image in ab]
        torch.stack([ids for ids, _ in found])
        return (torch.stack([weights for _, weights in found]),)

    return work


def nearest_neighbours(n: int, size: int) -> Work:
    """The paper's own encoder: scikit-learn's search, then the Gaussian."""
    neighbours = rivals.load("sklearn.neighbors").NearestNeighbors
    search = neighbours(n_neighbors=NEAREST, n_jobs=torch.get_num_threads()).fit(ops.gamut_bins().numpy())
    pixels = inputs(n, size).movedim(1, -1).reshape(-1, 2).numpy()

    def work() -> tuple[Tensor, ...]:
        distance, _ = search.kneighbors(pixels)
        weights = (-(torch.from_numpy(distance) ** 2) / (2 * SIGMA**2)).softmax(dim=1)
        return (weights.view(n, size, size, NEAREST).movedim(-1, 1),)

    return work


def cases() -> list[Case]:
    makers = {
        OURS: ours,
        "reference": eager,
        "torch cdist and topk": functools.partial(per_image, compiled=False),
        "torch.compile": functools.partial(per_image, compiled=True),
        **where.only_on_cpu({"scikit-learn neighbours": nearest_neighbours}),
    }
    return [
        Case(
            op="encode_ab",
            shape=f"{n} x 2 x {size} x {size}",
            dtype="float32",
            providers={name: functools.partial(make, n, size) for name, make in makers.items()},
            exact=functools.partial(
                lambda n, size: (reference(inputs(n, size).double(), ops.gamut_bins())[1],), n, size
            ),
            bytes_moved=n * size**2 * (8 + 60),
            peak=n == 32,
        )
        for n, size in where.sizes(cpu=((1, 56), (32, 56), (4, 224)), gpu=((32, 56), (256, 56)), small=((2, 8),))
    ]
