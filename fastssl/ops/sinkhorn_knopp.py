"""Sinkhorn-Knopp: scores of samples and prototypes as an assignment that uses all prototypes alike."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import log_softmax

from fastssl.ops import _check, _native
from fastssl.ops._backend import Implementation, Op, anything, native_cpu, native_cuda

_OP = "sinkhorn_knopp"


def sinkhorn_knopp(scores: Tensor, *, temp: float, iterations: int, backend: str | None = None) -> Tensor:
    """Soft assignment of B samples to K prototypes (SwAV, arXiv:2006.09882, eq. 3; the teacher of DINOv2).

    ``exp(scores / temp)``, each of whose iterations divides the columns by their sums, then the rows by theirs. The
    result does not depend on a constant added to all scores, nor on one added to a column, but it does on one added
    to a row, unless there are very many iterations. Any finite scores are served, for no sum can vanish: what is
    subtracted from the scores before their exponentials is restored. Probabilities under about 1e-38 B K are 0. No
    gradient is recorded. Deterministic, and the same bits for any number of threads.

    Args:
        scores: (B, K) float32, bfloat16, float16 or float64. Computed in float32, or float64.
        temp: finite, > 0; SwAV's epsilon, DINOv2's teacher temperature.
        iterations: at least 1; the papers take 3.
        backend: the backend that must serve the call; by default our kernel if it can (see ``fastssl.ops.explain``).
    Returns:
        (B, K) probabilities, each row of which adds up to 1, in float32 (float64 for float64 scores). If a score is NaN
        or inf, or all scores of a prototype are -inf, they all are NaN; a single -inf is a probability of 0.
    Raises:
        TypeError: for scores that are not floating-point, or iterations that are not an integer.
        ValueError: for another shape, no samples or no prototypes, a temperature that is not finite and positive, or
            fewer than one iteration.
        RuntimeError: if ``backend`` cannot serve the call.
    """
    _check.float_tensor(_OP, "scores", scores, "BK")
    if scores.numel() == 0:
        raise ValueError(f"{_OP}: needs at least one sample and one prototype; got {_check.shape(scores)}")
    temp = _check.positive(_OP, "temp", temp)
    iterations = _check.whole(_OP, "iterations", iterations)
    if iterations < 1:
        raise ValueError(f"{_OP}: iterations must be at least 1; got {iterations}")
    assignment: Tensor = _sinkhorn_knopp.call(scores.detach(), temp, iterations, backend)
    return assignment


def reference(scores: Tensor, temp: float, iterations: int) -> Tensor:
    """The formula in plain torch; the first iteration in logarithms, so that nothing vanishes."""
    logits = scores.to(_native.accumulator(scores.dtype)) / temp
    q = log_softmax(log_softmax(logits, dim=0), dim=1).exp_()
    for _ in range(iterations - 1):
        q /= q.sum(0, keepdim=True)
        q /= q.sum(1, keepdim=True)
    return q


def _fake(scores: Tensor, temp: float, iterations: int, backend: str | None) -> Tensor:
    return scores.new_empty(scores.shape, dtype=_native.accumulator(scores.dtype))


def _run(kernel: Callable[..., None], scores: Tensor, temp: float, iterations: int, *last: int) -> Tensor:
    """A native kernel, whose last arguments are the number of threads, or scratch memory and the stream."""
    scores = scores.contiguous()
    out = _fake(scores, temp, iterations, None)
    dtype = _native.DTYPES[scores.dtype]
    kernel(scores.data_ptr(), *scores.shape, dtype, temp, iterations, out.data_ptr(), *last)
    return out


def _cpu(scores: Tensor, temp: float, iterations: int) -> Tensor:
    return _run(_native.cpu.sinkhorn_knopp, scores, temp, iterations, _native.threads())


def _cuda(scores: Tensor, temp: float, iterations: int) -> Tensor:
    size = _native.cuda.sinkhorn_knopp_scratch(*scores.shape, _native.DTYPES[scores.dtype])
    scratch = _native.scratch(scores, size)
    with torch.cuda.device(scores.device):
        last = (scratch.data_ptr(), _native.stream(scores))
        return _run(_native.cuda.sinkhorn_knopp, scores, temp, iterations, *last)


_sinkhorn_knopp = Op(
    f"{_OP}(Tensor scores, float temp, int iterations, str? backend) -> Tensor",
    {
        "cuda": Implementation(_cuda, lambda scores, *_: native_cuda(scores, blocks=len(scores))),
        "cpu": Implementation(_cpu, lambda scores, *_: native_cpu(scores)),
        "reference": Implementation(reference, anything),
    },
    _fake,
    lambda device: (torch.randn(4, 8, device=device), 0.05, 3),
)
