"""Label propagation between frames; the affinities of all pixels to all are never stored."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from fastssl.ops import _check, _native
from fastssl.ops._backend import Implementation, Op, anything, native_cpu, triton, triton_cuda, triton_floats
from fastssl.ops._top_k import largest, triton_unsupported

_OP = "propagate_labels"
_CHUNK = 1 << 24  # affinities that the reference holds at a time: 64 MiB of float32


def propagate_labels(
    target: Tensor,
    context: Tensor,
    labels: Tensor,
    *,
    radius: int | None,
    k: int,
    temperature: float,
    backend: str | None = None,
) -> Tensor:
    """Labels of a frame from its nearest pixels in labelled frames: how DINO and CRW are evaluated on DAVIS.

    Each target pixel takes the k pixels of the whole context, among those at most ``radius`` rows and ``radius``
    columns away in any frame, with the highest cosine similarity s, and averages their labels with weights
    exp(s / temperature) (arXiv:2104.14294, appendix; arXiv:2006.14613, section 3.2). Of equally similar ones the first
    in the order of frames, rows and columns are taken; where fewer than k are in reach, all. Features need not have
    unit length. Memory beyond inputs and result grows with the context, not with the square of the pixels.
    Deterministic, and on a CPU the same bits for any number of threads. Computed in float32 (float64 for float64
    features), under autocast too. No gradient flows.

    Args:
        target: (D, H, W) features of the frame to label; float32, bfloat16, float16 or float64.
        context: (T, D, H, W) features of the frames that are labelled, dtype and device of ``target``.
        labels: (T, C, H, W) floating-point, device of ``target``: one channel a class, or any values to carry over.
        radius: half the side of the window, >= 0; None for the whole frame. DINO: 12.
        k: pixels that count, in [1, T H W]. DINO: 5.
        temperature: finite, > 0. DINO: 0.1.
        backend: the backend that must serve the call; by default our kernel if it can (see ``fastssl.ops.explain``).
    Returns:
        (C, H, W) float32 (float64 for float64 features). A target pixel with NaN or infinity gets NaN, and so does
        one that has such a pixel of the context in reach.
    Raises:
        TypeError: for a dtype that is not one of the above, or two different ones of ``target`` and ``context``.
        ValueError: for other shapes, an empty tensor, two devices, a negative radius, k outside [1, T H W], or a
            temperature that is not finite and positive.
        RuntimeError: if ``backend`` cannot serve the call.
    """
    _check.float_tensor(_OP, "target", target, "DHW")
    _check.float_tensor(_OP, "context", context, "TDHW")
    _check.float_tensor(_OP, "labels", labels, "TCHW")
    _check.alike(_OP, ("target", target), ("context", context))
    _check_frames(target, context, labels)
    count = context.shape[0] * context.shape[2] * context.shape[3]
    if not 1 <= _check.whole(_OP, "k", k) <= count:
        raise ValueError(f"{_OP}: k must be in [1, {count}], the pixels of the context; got {k}")
    if radius is not None and _check.whole(_OP, "radius", radius) < 0:
        raise ValueError(f"{_OP}: radius must be at least 0, or None; got {radius}")
    temperature = max(_check.positive(_OP, "temperature", temperature), _COLDEST)
    out: Tensor = _propagate_labels.call(
        target.detach(), context.detach(), labels.detach(), radius, k, temperature, backend
    )
    return out


_COLDEST = 1e-30  # float32 still divides by it; the nearest alone counts long before


def _check_frames(target: Tensor, context: Tensor, labels: Tensor) -> None:
    if context.shape[1:] != target.shape or labels.shape[0] != len(context) or labels.shape[2:] != target.shape[1:]:
        raise ValueError(
            f"{_OP}: target (D, H, W), context (T, D, H, W) and labels (T, C, H, W) must agree; "
            f"got {_shapes(target, context, labels)}"
        )
    if context.numel() == 0 or labels.numel() == 0:
        raise ValueError(
            f"{_OP}: needs at least one frame, feature, pixel and class; got {_shapes(target, context, labels)}"
        )
    if labels.device != target.device:
        raise ValueError(f"{_OP}: target and labels must be on one device; got {target.device} and {labels.device}")


def _shapes(target: Tensor, context: Tensor, labels: Tensor) -> str:
    return f"{_check.shape(target)}, {_check.shape(context)} and {_check.shape(labels)}"


def reference(
    target: Tensor, context: Tensor, labels: Tensor, radius: int | None, k: int, temperature: float
) -> Tensor:
    """The formula in plain torch, a chunk of target pixels at a time."""
    dtype = _native.accumulator(target.dtype)
    height, width = target.shape[1:]
    queries = normalize(target.to(dtype).flatten(1).T, dim=1)
    keys = normalize(context.to(dtype).movedim(1, -1).flatten(0, 2), dim=1)
    values = labels.to(dtype).movedim(1, -1).flatten(0, 2)
    pixel = torch.arange(height * width, device=target.device)
    y, x = pixel // width, pixel % width
    found = []
    with torch.autocast(target.device.type, enabled=False):
        for i in torch.split(pixel, max(1, _CHUNK // len(keys))):
            affinity = queries[i] @ keys.T
            if radius is not None:
                outside = ((y[i, None] - y).abs() > radius) | ((x[i, None] - x).abs() > radius)
                affinity = affinity.masked_fill_(outside.repeat(1, len(context)), float("-inf"))
            top, pixels = largest(affinity, k)
            weights = ((top - top[:, :1]) / temperature).softmax(dim=1)
            # -inf where fewer than k are in reach: whatever stands there must not count, even NaN
            neighbours = values[pixels].masked_fill_(top.isneginf()[..., None], 0)
            found.append((weights[..., None] * neighbours).sum(dim=1))
    return torch.cat(found).T.contiguous().view(-1, height, width)


def _fake(
    target: Tensor,
    context: Tensor,
    labels: Tensor,
    radius: int | None,
    k: int,
    temperature: float,
    backend: str | None = None,
) -> Tensor:
    return target.new_empty((labels.shape[1], *target.shape[1:]), dtype=_native.accumulator(target.dtype))


def _cpu(target: Tensor, context: Tensor, labels: Tensor, radius: int | None, k: int, temperature: float) -> Tensor:
    out = _fake(target, context, labels, radius, k, temperature)
    target, context, labels = target.contiguous(), context.contiguous(), labels.to(out.dtype).contiguous()
    _native.cpu.propagate_labels(
        target.data_ptr(),
        context.data_ptr(),
        labels.data_ptr(),
        *context.shape,
        labels.shape[1],
        _native.DTYPES[target.dtype],
        -1 if radius is None else radius,
        k,
        temperature,
        out.data_ptr(),
        _native.threads(),
    )
    return out


def _triton_unsupported(
    target: Tensor, context: Tensor, labels: Tensor, radius: int | None, k: int, temperature: float
) -> str | None:
    rows = context.shape[0] * context.shape[2] * context.shape[3]
    queries = target.shape[1] * target.shape[2]
    return triton_cuda(target, context, labels) or triton_floats(target) or triton_unsupported(queries, rows, k)


def _example(device: torch.device) -> tuple[Tensor | float, ...]:
    target, context, labels = (torch.rand(*s, 5, 6, device=device) for s in ((4,), (2, 4), (2, 3)))
    return target, context, labels, 2, 5, 0.1


_propagate_labels = Op(
    "propagate_labels(Tensor target, Tensor context, Tensor labels, int? radius, int k, float temperature, "
    "str? backend) -> Tensor",
    {
        "triton": Implementation(triton(_OP, "propagate"), _triton_unsupported),
        "cpu": Implementation(_cpu, lambda target, context, labels, r, k, t: native_cpu(target, context, labels)),
        "reference": Implementation(reference, anything),
    },
    _fake,
    _example,
)
