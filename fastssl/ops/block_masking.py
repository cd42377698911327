"""Masks of rectangular blocks, as BEiT and iBOT draw them, for a whole batch at once and on its device."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastssl.ops import _check, _native
from fastssl.ops._backend import Implementation, Op, anything, native_cpu, native_cuda

_OP = "block_masking"
ATTEMPTS = 32  # blocks tried a sample; what they leave is masked patch by patch
_RATIOS = 64  # aspect ratios to choose from
_CUDA_MAX_BYTES = 47 * 1024  # a sample's mask in bits lies in the shared memory of one block


def block_masking(
    batch: int,
    grid: int | tuple[int, int],
    masked: int | Tensor,
    *,
    min_block: int = 16,
    max_block: int | None = None,
    aspect: tuple[float, float] = (0.3, 1 / 0.3),
    generator: torch.Generator | None = None,
    noise: Tensor | None = None,
    device: torch.device | str | None = None,
    backend: str | None = None,
) -> Tensor:
    """Which patches of each sample are masked, in blocks (BEiT, arXiv:2106.08254, algorithm 1; iBOT, 2111.07832).

    Rectangles are drawn one after the other and may overlap: the area uniform in [``min_block``, ``max_block``] but no
    larger than what is left to mask, the aspect ratio (height / width) log-uniform in ``aspect``, the place uniform in
    the grid. One that does not fit into the grid, adds nothing or adds too much is passed over. After 32 of them, what
    still lacks is filled with single patches drawn uniformly, so each sample has exactly as many as asked for, where
    BEiT has at most as many. A sample takes four numbers a rectangle and one a patch of the noise, and equal noise
    gives equal masks with every backend and any number of threads.

    Args:
        batch: samples, > 0.
        grid: rows and columns H, W of patches, or one number for both.
        masked: patches to mask, in [0, H W]; or one number a sample, (batch) int64, as iBOT draws them.
            The GPU's kernel lets nothing wait to see what a tensor holds: one outside counts as the nearest inside.
        min_block: the least area of a block, in patches, >= 1. BEiT: 16; iBOT and DINOv2: 4.
        max_block: the largest, >= ``min_block``; by default the grid's. DINOv2: half of the grid.
        aspect: the least and the largest ratio of height to width, finite, > 0, in this order.
        generator: draws the noise, on its own device; by default torch's global generator of ``device``.
        noise: (batch, 128 + H W) float32, evenly spread in [0, 1), to use in place of drawing: area, aspect ratio, row
            and column of 32 rectangles, then one number a patch, of which those with the least are filled first.
        device: of the result; by default the noise's, the generator's, or torch's default device.
        backend: the backend that must serve the call; by default our kernel if it can (see ``fastssl.ops.explain``).
    Returns:
        (batch, H, W) bool, True for a masked patch.
    Raises:
        TypeError: for something that is no number or tensor, noise that is not float32, or counts that are not int64.
        ValueError: for sizes that are not positive or in the wrong order, a count outside [0, H W], which is named
            (but see ``masked``), noise or counts of another shape, or a generator, noise or counts on another device.
        RuntimeError: if ``backend`` cannot serve the call.
    """
    batch, (height, width) = _check.whole(_OP, "batch", batch), _check.one_or_two(_OP, "grid", grid)
    if batch < 1:
        raise ValueError(f"{_OP}: batch must be at least 1; got {batch}")
    min_block, max_block = _blocks(min_block, max_block, height * width)
    ratios = _ratios(*_range(aspect))
    shape = (batch, 4 * ATTEMPTS + height * width)
    noise = _check.uniform_noise(_OP, noise, shape, generator, device)
    counts = _counts(masked, batch, height * width, noise.device)
    out: Tensor = _block_masking.call(noise, counts, height, width, min_block, max_block, ratios, backend)
    return out


def _blocks(min_block: int, max_block: int | None, patches: int) -> tuple[int, int]:
    least = _check.whole(_OP, "min_block", min_block)
    most = max(patches, least) if max_block is None else _check.whole(_OP, "max_block", max_block)
    if not 1 <= least <= most:
        raise ValueError(f"{_OP}: min_block must be at least 1 and at most max_block; got {min_block} and {max_block}")
    return min(least, patches), min(most, patches)  # no block is larger than the grid


def _range(aspect: tuple[float, float]) -> tuple[float, float]:
    if not isinstance(aspect, (tuple, list)) or len(aspect) != 2:
        raise TypeError(f"{_OP}: aspect must be two numbers; got {aspect!r}")
    low, high = (_check.positive(_OP, "aspect", value) for value in aspect)
    if low > high:
        raise ValueError(f"{_OP}: aspect must be (least, largest); got ({low}, {high})")
    return low, high


_ratios_of: dict[tuple[float, float], list[float]] = {}  # a dict, for torch.compile warns of what caches functions


def _ratios(low: float, high: float) -> list[float]:
    """Log-uniform aspect ratios: given to every backend, so that all round the same sides."""
    found = _ratios_of.get((low, high))
    if found is None:
        steps = ((i + 0.5) / _RATIOS for i in range(_RATIOS))
        found = [math.exp((1 - t) * math.log(low) + t * math.log(high)) for t in steps]
        _ratios_of.clear()  # a loop asks for the same ones at every step; another thread may ask for others meanwhile
        _ratios_of[low, high] = found
    return found


def _counts(masked: int | Tensor, batch: int, patches: int, device: torch.device) -> Tensor:
    if isinstance(masked, Tensor):
        return _check.index_tensor(_OP, "masked", masked, batch, device)
    if not 0 <= _check.whole(_OP, "masked", masked) <= patches:
        raise ValueError(f"{_OP}: masked must be in [0, {patches}], the patches of the grid; got {masked}")
    return torch.full((batch,), masked, dtype=torch.int64, device=device)


def _chosen(u: Tensor, count: Tensor | int) -> Tensor:
    """Which of ``count`` equal parts of [0, 1) each number is in, the nearest one if outside; NaN is in the first."""
    part = u * count
    return torch.where(part > 0, part, 0).minimum(torch.as_tensor(count, device=u.device) - 1).to(torch.int64)


def reference(
    noise: Tensor, counts: Tensor, height: int, width: int, min_block: int, max_block: int, ratios: list[float]
) -> Tensor:
    """The definition in plain torch: a rectangle of every sample at a time."""
    _check.in_range(_OP, "masked", counts, height * width + 1)
    aspect = torch.tensor(ratios, dtype=torch.float64, device=noise.device)
    mask = torch.zeros(len(noise), height, width, dtype=torch.bool, device=noise.device)
    y, x = (torch.arange(side, device=noise.device) for side in (height, width))
    for u in noise[:, : 4 * ATTEMPTS].reshape(-1, ATTEMPTS, 4).unbind(1):
        lacking = counts - mask.sum((1, 2))
        least, most = lacking.clamp(max=min_block), lacking.clamp(max=max_block)
        area = least + _chosen(u[:, 0], most - least + 1)
        ratio = aspect[_chosen(u[:, 1], len(ratios))]
        # the sides as products and quotients alone, which every processor rounds alike
        rows = ((area * ratio).sqrt() + 0.5).to(torch.int64).clamp(min=1)
        columns = ((area / ratio).sqrt() + 0.5).to(torch.int64).clamp(min=1)
        fits = (rows <= height) & (columns <= width)
        top = _chosen(u[:, 2], (height - rows).clamp(min=0) + 1)
        left = _chosen(u[:, 3], (width - columns).clamp(min=0) + 1)
        in_rows = (y >= top[:, None]) & (y < (top + rows)[:, None])
        in_columns = (x >= left[:, None]) & (x < (left + columns)[:, None])
        block = in_rows[:, :, None] & in_columns[:, None, :]
        added = (block & ~mask).sum((1, 2))
        mask |= block & (fits & (added <= lacking))[:, None, None]
    return _filled(mask.flatten(1), counts, noise[:, 4 * ATTEMPTS :]).view_as(mask)


def _filled(mask: Tensor, counts: Tensor, noise: Tensor) -> Tensor:
    order = noise.argsort(dim=1, stable=True)
    free = ~mask.gather(1, order)
    lacking = (counts - mask.sum(1))[:, None]
    return mask.scatter(1, order, ~free | (free.cumsum(1) <= lacking))


def _fake(
    noise: Tensor,
    counts: Tensor,
    height: int,
    width: int,
    min_block: int,
    max_block: int,
    ratios: list[float],
    backend: str | None = None,
) -> Tensor:
    return noise.new_empty((noise.shape[0], height, width), dtype=torch.bool)


def _run(
    kernel: Callable[..., None],
    last: int,
    noise: Tensor,
    counts: Tensor,
    height: int,
    width: int,
    min_block: int,
    max_block: int,
    ratios: list[float],
) -> Tensor:
    """A native kernel, whose last argument is the number of threads or the stream; the ratios stay on the host."""
    out = _fake(noise, counts, height, width, min_block, max_block, ratios)
    noise, counts = noise.contiguous(), counts.contiguous()
    aspect = torch.tensor(ratios, dtype=torch.float64, device="cpu")
    kernel(
        noise.data_ptr(),
        counts.data_ptr(),
        aspect.data_ptr(),
        len(noise),
        height,
        width,
        ATTEMPTS,
        min_block,
        max_block,
        len(ratios),
        out.data_ptr(),
        last,
    )
    return out


def _cpu(noise: Tensor, counts: Tensor, height: int, width: int, *settings: Any) -> Tensor:
    _check.in_range(_OP, "masked", counts, height * width + 1)
    return _run(_native.cpu.block_masking, _native.threads(), noise, counts, height, width, *settings)


def _cuda(noise: Tensor, counts: Tensor, *settings: Any) -> Tensor:
    with torch.cuda.device(noise.device):
        return _run(_native.cuda.block_masking, _native.stream(noise), noise, counts, *settings)


def _cuda_unsupported(noise: Tensor, counts: Tensor, height: int, width: int, *settings: Any) -> str | None:
    if height * math.ceil(width / 64) * 8 > _CUDA_MAX_BYTES:
        return f"it holds at most {_CUDA_MAX_BYTES * 8} patches in rows of 64, got a grid of {height} x {width}"
    if len(settings[-1]) > _RATIOS:
        return f"it takes at most {_RATIOS} aspect ratios, got {len(settings[-1])}"
    return native_cuda(noise, counts, blocks=len(noise))


_block_masking = Op(
    "block_masking(Tensor noise, Tensor counts, int height, int width, int min_block, int max_block, float[] ratios, "
    "str? backend) -> Tensor",
    {
        "cuda": Implementation(_cuda, _cuda_unsupported),
        "cpu": Implementation(_cpu, lambda noise, *_: native_cpu(noise)),
        "reference": Implementation(reference, anything),
    },
    _fake,
    lambda device: (
        torch.rand(2, 4 * ATTEMPTS + 12, device=device),
        torch.tensor([0, 7], device=device),
        3,
        4,
        2,
        12,
        [0.5, 1.0, 2.0],
    ),
)
