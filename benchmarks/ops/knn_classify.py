"""Weighted kNN of unit features against a bank. Searches return neighbours; the vote is the same for all of them."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import normalize

from benchmarks import rivals, where
from benchmarks.harness import OURS, Case, Work
from fastssl import ops
from fastssl.ops.knn_classify import reference  # type: ignore[attr-defined]

TEMPERATURE, CLASSES, CHUNK = 0.07, 1000, 512
Search = Callable[[Tensor], tuple[Tensor, Tensor]]


@where.kept
def inputs(queries: int, size: int, d: int) -> tuple[Tensor, Tensor, Tensor]:
    """Rows around a centre for each class."""
    generator = where.generator()
    centres = torch.randn(CLASSES, d, generator=generator)
    labels = torch.randint(CLASSES, (queries + size,), generator=generator)
    rows = normalize(centres[labels] + 2 * torch.randn(queries + size, d, generator=generator), dim=1)
    return rows[:queries], rows[queries:], labels[queries:]


def vote(similarity: Tensor, labels: Tensor) -> Tensor:
    """What DINO's and lightly's classifiers do with the neighbours that they found."""
    weights = ((similarity - similarity.amax(1, keepdim=True)) / TEMPERATURE).exp()
    votes = weights.new_zeros(len(weights), CLASSES).scatter_add_(1, labels, weights)
    return votes / votes.sum(1, keepdim=True)


def ours(queries: int, size: int, d: int, k: int) -> Work:
    features, bank, labels = inputs(queries, size, d)
    return lambda: (ops.knn_classify(features, bank, labels, k=k, temperature=TEMPERATURE, num_classes=CLASSES),)


def torch_reference(queries: int, size: int, d: int, k: int) -> Work:
    features, bank, labels = inputs(queries, size, d)
    return lambda: (reference(features, bank, labels, k, TEMPERATURE, CLASSES),)


def searching(make: Callable[[Tensor, int], Search], queries: int, size: int, d: int, k: int) -> Work:
    features, bank, labels = inputs(queries, size, d)
    search = make(bank, k)

    def work() -> tuple[Tensor, ...]:
        similarity, columns = search(features)
        return (vote(similarity, labels[columns]),)

    return work


def torch_topk(bank: Tensor, k: int, compiled: bool = False) -> Search:
    """Chunks of queries, one product and one topk each: lightly's and DINO's way."""

    def one(chunk: Tensor, bank: Tensor) -> tuple[Tensor, Tensor]:
        values, columns = (chunk @ bank.T).topk(k, dim=1)
        return values, columns

    function = where.compiled(one, dynamic=True) if compiled else one

    def search(features: Tensor) -> tuple[Tensor, Tensor]:
        found = [function(chunk, bank) for chunk in features.split(CHUNK)]
        return torch.cat([values for values, _ in found]), torch.cat([columns for _, columns in found])

    return search


def faiss_flat(bank: Tensor, k: int) -> Search:
    faiss = rivals.load("faiss")
    faiss.omp_set_num_threads(torch.get_num_threads())
    index = faiss.IndexFlatIP(bank.shape[1])
    index.add(bank.numpy())

    def search(features: Tensor) -> tuple[Tensor, Tensor]:
        values, columns = index.search(features.numpy(), k)
        return torch.from_numpy(values), torch.from_numpy(columns)

    return search


def scikit_learn(bank: Tensor, k: int) -> Search:
    """Brute force by Euclidean distance, its fast way; of unit vectors it gives the same neighbours."""
    index = rivals.load("sklearn.neighbors").NearestNeighbors(n_neighbors=k, algorithm="brute").fit(bank.numpy())

    def search(features: Tensor) -> tuple[Tensor, Tensor]:
        distance, columns = index.kneighbors(features.numpy())
        return 1 - torch.from_numpy(distance).float() ** 2 / 2, torch.from_numpy(columns)

    return search


def exact(queries: int, size: int, d: int, k: int) -> tuple[Tensor, ...]:
    features, bank, labels = inputs(queries, size, d)
    return (reference(features.double(), bank.double(), labels, k, TEMPERATURE, CLASSES),)


def cases() -> list[Case]:
    whole: dict[str, Callable[..., Work]] = {OURS: ours, "reference": torch_reference}
    searches = {
        "torch matmul and topk": torch_topk,
        "torch.compile": functools.partial(torch_topk, compiled=True),
        **where.only_on_cpu({"faiss IndexFlatIP": faiss_flat, "scikit-learn brute": scikit_learn}),
    }
    makers = {**whole, **{name: functools.partial(searching, make) for name, make in searches.items()}}
    return [
        Case(
            op="knn_classify",
            shape=f"queries={queries} bank={size} d={d} k={k}",
            dtype="float32",
            providers={name: functools.partial(make, queries, size, d, k) for name, make in makers.items()},
            exact=functools.partial(exact, queries, size, d, k),
            operations=2.0 * queries * size * d,
            peak=k == 20,
        )
        for queries, size, d, k in where.sizes(
            cpu=(
                (256, 2000, 128, 20),
                (1000, 50_000, 512, 20),
                (1000, 50_000, 512, 200),
                (10_000, 50_000, 512, 20),
            ),
            gpu=((1000, 50_000, 512, 200), (10_000, 50_000, 512, 20)),
            small=((8, 64, 16, 5),),
        )
    ]
