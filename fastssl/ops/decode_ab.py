"""Chroma from a distribution over quantised bins; the softmax is never stored."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastssl.ops import _check, _color, _native
from fastssl.ops._backend import Implementation, Op, anything, native_cpu, native_cuda, refuse_gradient

_OP = "decode_ab"


def decode_ab(logits: Tensor, bins: Tensor, *, temperature: float = 0.38, backend: str | None = None) -> Tensor:
    """The annealed mean of the bins: ``softmax(logits / temperature)`` by ``bins`` (arXiv:1603.08511, eq. 5).

    Temperature 1 gives the mean of the distribution, towards 0 its mode. The softmax is never stored. Deterministic.
    Computed in float32 (float64 for float64), under autocast too.

    Args:
        logits: (N, B, H, W) float32, bfloat16, float16 or float64. NaN gives NaN.
        bins: (B, 2) floating-point, device of ``logits``; ``fastssl.ops.gamut_bins()`` are the paper's.
        temperature: finite, > 0; 0.38 is the paper's.
        backend: the backend that must serve the call; by default our kernel if it can (see ``fastssl.ops.explain``).
    Returns:
        (N, 2, H, W) float32 (float64 for float64 logits): a and b in the units of ``bins``.
    Raises:
        TypeError: for a dtype that is not one of the above.
        ValueError: for another shape, an empty one, two devices, or a temperature that is not finite and positive.
        RuntimeError: if ``backend`` cannot serve the call, or in a backward, which is not supported: training compares
            the logits with the targets of ``encode_ab``.
    """
    _check.float_tensor(_OP, "logits", logits, "NBHW")
    bins = _color.check_bins(_OP, bins, 1, ("logits", logits))
    if logits.shape[1] != len(bins):
        raise ValueError(
            f"{_OP}: logits (N, B, H, W) and bins (B, 2) must agree on B; "
            f"got {_check.shape(logits)} and {_check.shape(bins)}"
        )
    if logits.numel() == 0:
        raise ValueError(f"{_OP}: logits must not be empty; got {_check.shape(logits)}")
    temperature = max(_check.positive(_OP, "temperature", temperature), _COLDEST)
    ab: Tensor = _decode_ab.call(logits, bins.detach(), temperature, backend)
    return ab


_COLDEST = 1e-30  # float32 still divides by it; the mode alone counts long before


def reference(logits: Tensor, bins: Tensor, temperature: float) -> Tensor:
    """The formula in plain torch."""
    logits, bins = (x.to(_native.accumulator(logits.dtype)) for x in (logits, bins))
    # the largest subtracted before the division, which could overflow
    p = ((logits - logits.amax(dim=1, keepdim=True)) / temperature).softmax(dim=1)
    with torch.autocast(logits.device.type, enabled=False):
        return torch.einsum("nbhw,bc->nchw", p, bins).contiguous()


def _fake(logits: Tensor, bins: Tensor, temperature: float, backend: str | None = None) -> Tensor:
    n, _, height, width = logits.shape
    return logits.new_empty((n, 2, height, width), dtype=_native.accumulator(logits.dtype))


def _cpu(logits: Tensor, bins: Tensor, temperature: float) -> Tensor:
    return _decoded(_native.cpu.decode_ab, logits, bins, temperature, _native.threads())


def _cuda(logits: Tensor, bins: Tensor, temperature: float) -> Tensor:
    with torch.cuda.device(logits.device):
        return _decoded(_native.cuda.decode_ab, logits, bins, temperature, _native.stream(logits))


def _decoded(kernel: Any, logits: Tensor, bins: Tensor, temperature: float, threads_or_stream: int) -> Tensor:
    logits, by_coordinate = logits.contiguous(), _color.coordinates(bins, logits.dtype)
    ab = _fake(logits, bins, temperature)
    kernel(
        logits.data_ptr(),
        by_coordinate.data_ptr(),
        len(logits),
        logits.shape[2] * logits.shape[3],
        len(bins),
        _native.DTYPES[logits.dtype],
        temperature,
        ab.data_ptr(),
        threads_or_stream,
    )
    return ab


_decode_ab = Op(
    "decode_ab(Tensor logits, Tensor bins, float temperature, str? backend) -> Tensor",
    {
        "cuda": Implementation(_cuda, lambda logits, bins, t: native_cuda(logits, bins)),
        "cpu": Implementation(_cpu, lambda logits, bins, t: native_cpu(logits, bins)),
        "reference": Implementation(reference, anything),
    },
    _fake,
    lambda device: (torch.randn(2, 313, 3, 4, device=device), _color.gamut_bins(device=device), 0.38),
)
refuse_gradient(_OP)
