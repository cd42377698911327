"""Random masking of patches, as the masked autoencoder does it: one noise, one sort a sample."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fastssl.ops import _check, _native
from fastssl.ops._backend import Implementation, Op, anything, native_cpu, native_cuda

_OP = "random_masking"
_CUDA_RUN = 4096  # patches that are sorted in the shared memory of one block
_CUDA_MOST = 2**30  # patches a sample, which its kernels count in 32 bits


def kept_patches(length: int, ratio: float) -> int:
    """floor(length * (1 - ratio)), where a product that only rounding keeps under an integer counts as that integer.

    ``int(10 * (1 - 0.9))`` is 0; this is 1.
    """
    return math.floor(length * (1.0 - ratio) + 1e-6)


def random_masking(
    batch: int,
    length: int,
    ratio: float,
    *,
    generator: torch.Generator | None = None,
    noise: Tensor | None = None,
    device: torch.device | str | None = None,
    backend: str | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Which patches of each sample a masked autoencoder sees (MAE, arXiv:2111.06377, section 3).

    Equal to two stable argsorts of the same noise: each sample keeps the patches with the least noise, in that order.

    Args:
        batch: samples, > 0.
        length: patches a sample, > 0.
        ratio: the share to remove, in [0, 1); ``kept_patches(length, ratio)`` remain, which must be at least one.
        generator: draws the noise, on its own device; by default torch's global generator of ``device``.
        noise: (batch, length) float32 to use in place of drawing; equal values keep their order, NaN comes last.
        device: of the results; by default the noise's, the generator's, or torch's default device.
        backend: the backend that must serve the call; by default our kernel if it can (see ``fastssl.ops.explain``).
    Returns:
        ids_keep: (batch, kept) int64, the patches that remain.
        ids_restore: (batch, length) int64, where each patch stands in the shuffled order, kept ones first.
        mask: (batch, length) float32, 1 for a removed patch, 0 for a kept one.
    Raises:
        TypeError: if the noise is not float32.
        ValueError: for sizes that are not positive, a ratio outside [0, 1) or one that keeps no patch, noise of another
            shape, or a generator or noise on another device than ``device``.
        RuntimeError: if ``backend`` cannot serve the call.
    """
    batch, length = _check.whole(_OP, "batch", batch), _check.whole(_OP, "length", length)
    ratio = _check.number(_OP, "ratio", ratio)
    if batch < 1 or length < 1:
        raise ValueError(f"{_OP}: batch and length must be at least 1; got {batch} and {length}")
    if not 0.0 <= ratio < 1.0:
        raise ValueError(f"{_OP}: ratio must be in [0, 1); got {ratio}")
    keep = kept_patches(length, ratio)
    if keep < 1:
        raise ValueError(f"{_OP}: ratio {ratio} keeps none of {length} patches; it must leave at least one")
    noise = _check.uniform_noise(_OP, noise, (batch, length), generator, device)
    ids_keep, ids_restore, mask = _random_masking.call(noise, keep, backend)
    return ids_keep, ids_restore, mask


def reference(noise: Tensor, keep: int) -> tuple[Tensor, Tensor, Tensor]:
    """The definition in plain torch: two argsorts."""
    order = noise.argsort(dim=1, stable=True)
    ids_restore = order.argsort(dim=1)
    mask = (ids_restore >= keep).to(torch.float32)
    return order[:, :keep].contiguous(), ids_restore, mask


def _fake(noise: Tensor, keep: int, backend: str | None) -> tuple[Tensor, Tensor, Tensor]:
    batch, length = noise.shape
    return (
        noise.new_empty((batch, keep), dtype=torch.int64),
        noise.new_empty((batch, length), dtype=torch.int64),
        noise.new_empty((batch, length)),
    )


def _cpu(noise: Tensor, keep: int) -> tuple[Tensor, Tensor, Tensor]:
    noise = noise.contiguous()
    out = _fake(noise, keep, None)
    _native.cpu.random_masking(
        noise.data_ptr(), *noise.shape, keep, *(tensor.data_ptr() for tensor in out), _native.threads()
    )
    return out


def _cuda(noise: Tensor, keep: int) -> tuple[Tensor, Tensor, Tensor]:
    noise = noise.contiguous()
    out = _fake(noise, keep, None)
    runs = noise.new_empty(noise.shape if noise.shape[1] > _CUDA_RUN else 0, dtype=torch.int64)
    with torch.cuda.device(noise.device):
        addresses = (tensor.data_ptr() for tensor in (*out, runs))
        _native.cuda.random_masking(noise.data_ptr(), *noise.shape, keep, *addresses, _native.stream(noise))
    return out


def _cuda_unsupported(noise: Tensor, keep: int) -> str | None:
    batch, length = noise.shape
    if length > _CUDA_MOST:
        return f"it sorts at most 2^30 patches a sample, got {length}"
    return native_cuda(noise, blocks=batch * -(-length // _CUDA_RUN))


_random_masking = Op(
    "random_masking(Tensor noise, int keep, str? backend) -> (Tensor, Tensor, Tensor)",
    {
        "cuda": Implementation(_cuda, _cuda_unsupported),
        "cpu": Implementation(_cpu, lambda noise, keep: native_cpu(noise)),
        "reference": Implementation(reference, anything),
    },
    _fake,
    lambda device: (torch.rand(2, 8, device=device), 3),
)
