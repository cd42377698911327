"""Weighted k-nearest-neighbour votes; the similarities of all queries to the whole bank are never stored."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from fastssl.ops import _check, _native
from fastssl.ops._backend import Implementation, Op, anything, native_cpu, triton, triton_floats
from fastssl.ops._top_k import largest, triton_unsupported

_OP = "knn_classify"
_CHUNK = 1 << 24  # similarities that the reference holds at a time: 64 MiB of float32


def knn_classify(
    features: Tensor,
    bank: Tensor,
    labels: Tensor,
    *,
    k: int,
    temperature: float,
    num_classes: int,
    backend: str | None = None,
) -> Tensor:
    """What share of its neighbours' votes each class gets (Wu et al., arXiv:1805.01978, section 3.4).

    The k rows of the bank with the highest cosine similarity s vote with weight exp(s / temperature) for their labels;
    of equally near ones at the k-th place those that come first in the bank. ``scores.argmax(1)`` is the prediction.
    Scores are divided by the sum of the k weights: it changes no prediction, and exp(1 / 0.01) alone would overflow.
    Rows need not have unit length; a row of zeros has similarity 0 to all.
    Memory beyond inputs and scores does not grow with Q x M. Deterministic on a CPU, and the same bits for any number
    of threads. Computed in float32 (float64 for float64 features), under autocast too. No gradient flows.

    Args:
        features: (Q, D) float32, bfloat16, float16 or float64.
        bank: (M, D), dtype and device of ``features``.
        labels: (M,) int64 in [0, num_classes), device of ``bank``. The GPU's kernel does not look, which would wait for
            the device: a label out of range votes for no class.
        k: neighbours that vote, in [1, M].
        temperature: finite, > 0.
        num_classes: number of classes, >= 1.
        backend: the backend that must serve the call; by default our kernel if it can (see ``fastssl.ops.explain``).
    Returns:
        (Q, num_classes) float32 (float64 for float64 features); rows sum to 1. A query with NaN or infinity scores NaN,
        and every query does where the bank has one.
    Raises:
        TypeError: for a dtype that is not one of the above, or two different ones.
        ValueError: for other shapes, an empty tensor, two devices, labels outside [0, num_classes), k outside [1, M],
            num_classes < 1, or a temperature that is not finite and positive.
        RuntimeError: if ``backend`` cannot serve the call.
    """
    _check.float_tensor(_OP, "features", features, "QD")
    _check.float_tensor(_OP, "bank", bank, "MD")
    _check.alike(_OP, ("features", features), ("bank", bank))
    if features.shape[1] != bank.shape[1]:
        raise ValueError(
            f"{_OP}: features (Q, D) and bank (M, D) must agree on D; "
            f"got {_check.shape(features)} and {_check.shape(bank)}"
        )
    if features.numel() == 0 or bank.numel() == 0:
        raise ValueError(
            f"{_OP}: needs at least one query, one row in the bank and one feature; "
            f"got {_check.shape(features)} and {_check.shape(bank)}"
        )
    _check_labels(bank, labels)
    k, num_classes = _check.whole(_OP, "k", k), _check.whole(_OP, "num_classes", num_classes)
    if not 1 <= k <= len(bank):
        raise ValueError(f"{_OP}: k must be in [1, {len(bank)}], the size of the bank; got {k}")
    if num_classes < 1:
        raise ValueError(f"{_OP}: num_classes must be at least 1; got {num_classes}")
    temperature = max(_check.positive(_OP, "temperature", temperature), _COLDEST)
    scores: Tensor = _knn_classify.call(features.detach(), bank.detach(), labels, k, temperature, num_classes, backend)
    return scores


_COLDEST = 1e-30  # float32 still divides by it; the nearest alone votes long before


def _check_labels(bank: Tensor, labels: object) -> None:
    labels = _check.tensor(_OP, "labels", labels)
    if labels.dtype != torch.int64:
        raise TypeError(f"{_OP}: labels must be int64; got {labels.dtype}")
    if labels.shape != bank.shape[:1]:
        raise ValueError(
            f"{_OP}: bank (M, D) and labels (M) must agree on M; got {_check.shape(bank)} and {_check.shape(labels)}"
        )
    if labels.device != bank.device:
        raise ValueError(f"{_OP}: bank and labels must be on one device; got {bank.device} and {labels.device}")


def _check_range(labels: Tensor, num_classes: int) -> None:
    """Looks at values, so it is called by the kernels and not while a graph is traced."""
    low, high = (int(x) for x in labels.aminmax())
    if low < 0 or high >= num_classes:
        raise ValueError(f"{_OP}: labels must lie in [0, {num_classes}); got {low} to {high}")


def reference(features: Tensor, bank: Tensor, labels: Tensor, k: int, temperature: float, num_classes: int) -> Tensor:
    """The formula in plain torch, a chunk of queries at a time."""
    _check_range(labels, num_classes)
    features, bank = (normalize(x.to(_native.accumulator(x.dtype)), dim=1) for x in (features, bank))
    scores = []
    with torch.autocast(features.device.type, enabled=False):
        for chunk in torch.split(features, max(1, _CHUNK // len(bank))):
            similarity, columns = largest(chunk @ bank.T, k)
            weights = ((similarity - similarity.amax(dim=1, keepdim=True)) / temperature).exp()
            votes = weights.new_zeros(len(chunk), num_classes).scatter_add_(1, labels[columns], weights)
            scores.append(votes / votes.sum(dim=1, keepdim=True))
    return torch.cat(scores)


def _fake(
    features: Tensor,
    bank: Tensor,
    labels: Tensor,
    k: int,
    temperature: float,
    num_classes: int,
    backend: str | None = None,
) -> Tensor:
    return features.new_empty((features.shape[0], num_classes), dtype=_native.accumulator(features.dtype))


def _cpu(features: Tensor, bank: Tensor, labels: Tensor, k: int, temperature: float, num_classes: int) -> Tensor:
    _check_range(labels, num_classes)
    features, bank, labels = features.contiguous(), bank.contiguous(), labels.contiguous()
    scores = _fake(features, bank, labels, k, temperature, num_classes)
    _native.cpu.knn_classify(
        features.data_ptr(),
        bank.data_ptr(),
        labels.data_ptr(),
        len(features),
        *bank.shape,
        _native.DTYPES[features.dtype],
        k,
        temperature,
        num_classes,
        scores.data_ptr(),
        _native.threads(),
    )
    return scores


def _triton_unsupported(features: Tensor, bank: Tensor, labels: Tensor, k: int, *_: object) -> str | None:
    return triton_floats(features, bank, labels) or triton_unsupported(len(features), len(bank), k)


def _example(device: torch.device) -> tuple[Tensor | float, ...]:
    features, bank = (torch.randn(n, 4, device=device) for n in (3, 8))
    return features, bank, torch.arange(8, device=device) % 3, 5, 0.5, 3


_knn_classify = Op(
    "knn_classify(Tensor features, Tensor bank, Tensor labels, int k, float temperature, int num_classes, str? backend)"
    " -> Tensor",
    {
        "triton": Implementation(triton(_OP, "scores"), _triton_unsupported),
        "cpu": Implementation(_cpu, lambda features, bank, labels, k, t, c: native_cpu(features, bank, labels)),
        "reference": Implementation(reference, anything),
    },
    _fake,
    _example,
)
