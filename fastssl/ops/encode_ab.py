"""Soft assignment of chroma to quantised bins: the targets of colorization."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastssl.ops import _check, _color, _native
from fastssl.ops._backend import Implementation, Op, anything, native_cpu, native_cuda
from fastssl.ops._top_k import largest

_OP = "encode_ab"
NEAREST, SIGMA = 5, 5.0
_CHUNK = 1 << 24  # distances that the reference holds at a time: 64 MiB of float32


def encode_ab(ab: Tensor, bins: Tensor, *, backend: str | None = None) -> tuple[Tensor, Tensor]:
    """Each pixel's 5 nearest bins, weighted by a Gaussian of sigma 5 (Zhang et al., arXiv:1603.08511, section 2.1).

    A distribution over B bins of which 5 are not 0, kept as such: with logits (N, B, H, W) the loss of the paper is
    ``-(weights * logits.log_softmax(1).gather(1, ids)).sum(1).mean()``, and ``ids[:, 0]`` the hard target.
    Bins come nearest first, of equally near ones the lowest first. The distances to all bins are never stored.
    Deterministic. Computed in float32 (float64 for float64 ``ab``). No gradient flows: targets have none.

    Args:
        ab: (N, 2, H, W) float32, bfloat16, float16 or float64, in CIE units, as channels 1 and 2 of ``rgb_to_lab``.
            NaN and infinity give NaN weights, and ids that are valid and mean nothing.
        bins: (B, 2) finite floating-point, B >= 5, device of ``ab``; ``fastssl.ops.gamut_bins()`` are the paper's.
            The GPU's kernel does not look whether they are finite, which would wait for the device: a bin of NaN is
            never chosen.
        backend: the backend that must serve the call; by default our kernel if it can (see ``fastssl.ops.explain``).
    Returns:
        ids: (N, 5, H, W) int64 in [0, B).
        weights: (N, 5, H, W) float32 (float64 for float64 ``ab``), summing to 1 for each pixel.
    Raises:
        TypeError: for a dtype that is not one of the above.
        ValueError: for another shape, an empty one, two devices, fewer than 5 bins, or bins that are not finite.
        RuntimeError: if ``backend`` cannot serve the call.
    """
    _check.float_tensor(_OP, "ab", ab, "N2HW")
    if ab.shape[1] != 2:
        raise ValueError(f"{_OP}: ab must have shape (N, 2, H, W); got {_check.shape(ab)}")
    if ab.numel() == 0:
        raise ValueError(f"{_OP}: ab must not be empty; got {_check.shape(ab)}")
    bins = _color.check_bins(_OP, bins, NEAREST, ("ab", ab))
    ids, weights = _encode_ab.call(ab.detach(), bins.detach(), backend)
    return ids, weights


def _check_finite(bins: Tensor) -> None:
    """Looks at values, so it is called by the kernels and not while a graph is traced."""
    if not bool(bins.isfinite().all()):
        raise ValueError(f"{_OP}: bins must be finite; got {int((~bins.isfinite()).sum())} values that are not")


def reference(ab: Tensor, bins: Tensor) -> tuple[Tensor, Tensor]:
    """The formula in plain torch, a chunk of pixels at a time."""
    _check_finite(bins)
    a, b = _color.coordinates(bins, ab.dtype)
    n, _, height, width = ab.shape
    pixels = ab.movedim(1, -1).reshape(-1, 2).to(a.dtype)
    found = []
    for chunk in torch.split(pixels, max(1, _CHUNK // len(a))):
        squares = (chunk[:, :1] - a) ** 2 + (chunk[:, 1:] - b) ** 2
        near, ids = largest(-squares, NEAREST)
        found.append((ids, (near / (2 * SIGMA**2)).softmax(dim=1)))
    ids, weights = (torch.cat(parts).view(n, height, width, NEAREST) for parts in zip(*found, strict=True))
    return ids.movedim(-1, 1).contiguous(), weights.movedim(-1, 1).contiguous()


def _fake(ab: Tensor, bins: Tensor, backend: str | None = None) -> tuple[Tensor, Tensor]:
    n, _, height, width = ab.shape
    shape = (n, NEAREST, height, width)
    return ab.new_empty(shape, dtype=torch.int64), ab.new_empty(shape, dtype=_native.accumulator(ab.dtype))


def _cpu(ab: Tensor, bins: Tensor) -> tuple[Tensor, Tensor]:
    _check_finite(bins)
    return _encoded(_native.cpu.encode_ab, ab, bins, _native.threads())


def _cuda(ab: Tensor, bins: Tensor) -> tuple[Tensor, Tensor]:
    with torch.cuda.device(ab.device):
        return _encoded(_native.cuda.encode_ab, ab, bins, _native.stream(ab))


def _encoded(kernel: Any, ab: Tensor, bins: Tensor, threads_or_stream: int) -> tuple[Tensor, Tensor]:
    ab, by_coordinate = ab.contiguous(), _color.coordinates(bins, ab.dtype)
    ids, weights = _fake(ab, bins)
    kernel(
        ab.data_ptr(),
        by_coordinate.data_ptr(),
        len(ab),
        ab.shape[2] * ab.shape[3],
        len(bins),
        _native.DTYPES[ab.dtype],
        ids.data_ptr(),
        weights.data_ptr(),
        threads_or_stream,
    )
    return ids, weights


_encode_ab = Op(
    "encode_ab(Tensor ab, Tensor bins, str? backend) -> (Tensor, Tensor)",
    {
        "cuda": Implementation(_cuda, native_cuda),
        "cpu": Implementation(_cpu, native_cpu),
        "reference": Implementation(reference, anything),
    },
    _fake,
    lambda device: (20 * torch.rand(2, 2, 3, 4, device=device), _color.gamut_bins(device=device)),
)
