"""Tiles of a grid over each image: what jigsaw puzzles and relative positions are made of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastssl.ops import _check, _native
from fastssl.ops._backend import Implementation, Op, anything, native_cpu, native_cuda, refuse_gradient

_OP = "tiles"
_EPSILON = 1e-5  # torch.nn.functional.instance_norm's


def tiles(
    images: Tensor,
    grid: int | tuple[int, int],
    order: Tensor | None = None,
    *,
    size: int | tuple[int, int] | None = None,
    jitter: int = 0,
    generator: torch.Generator | None = None,
    offsets: Tensor | None = None,
    normalize: bool = False,
    backend: str | None = None,
) -> Tensor:
    """A tile of each cell of a grid, in the order asked for (jigsaw, arXiv:1603.09246; relative patch, 1505.05192).

    The image is divided into cells of equal size, numbered row by row; pixels that are left over stay around the grid.
    A tile smaller than its cell leaves a gap to the next one, and ``jitter`` moves it within: neighbouring tiles then
    cannot be told by an edge that continues. Jigsaw: ``tiles(x, 3, permutation, size=64, jitter=5, normalize=True)`` of
    images of 225 pixels. Relative patch: ``order`` names the two patches. Deterministic, and the same bits for any
    number of threads, but for what is drawn.

    Args:
        images: (N, C, H, W) float32, bfloat16, float16 or float64.
        grid: rows and columns, or one number for both; at most as many as the image has pixels.
        order: (N, K) or, for all images alike, (K) int64: the cells to take, each in [0, rows * columns), any number of
            times; by default all as they are numbered. Output tile k comes from cell ``order[n, k]``. The GPU's
            kernel lets nothing wait to see what ``order`` and ``offsets`` hold: a tile of an index outside is NaN.
        size: height and width of a tile, or one number for both; by default the cell's.
        jitter: pixels by which a tile is moved at most from the middle of its cell, up, down, left and right, drawn
            uniformly for each image and cell; it must not leave the cell.
        generator: draws the jitter, on the images' device; by default torch's global generator.
        offsets: (N, rows * columns, 2) int64 to use in place of drawing: where in each cell its tile begins.
        normalize: bring each channel of each tile to mean 0 and variance 1, ``(x - mean) / sqrt(variance + 1e-5)``,
            computed in float32 (float64 for float64): edges' colours and brightness then tell nothing either.
        backend: the backend that must serve the call; by default our kernel if it can (see ``fastssl.ops.explain``).
    Returns:
        (N, K, C, height, width), dtype of ``images``. Normalised tiles with NaN or infinity are NaN in that channel.
    Raises:
        TypeError: for another dtype, or something that is no tensor or number.
        ValueError: for a grid, size or jitter that does not fit, shapes or devices that do not agree, offsets and
            jitter together, or an index outside its range, which is named (but see ``order``).
        RuntimeError: if ``backend`` cannot serve the call, or in a backward, which is not supported.
    """
    _check.float_tensor(_OP, "images", images, "NCHW")
    if images.numel() == 0:
        raise ValueError(f"{_OP}: needs at least one image, channel and pixel; got {_check.shape(images)}")
    rows, columns = _check.one_or_two(_OP, "grid", grid)
    cell = (images.shape[2] // rows, images.shape[3] // columns)
    if min(cell) < 1:
        raise ValueError(f"{_OP}: a grid of {rows} x {columns} needs as many pixels; got images {_check.shape(images)}")
    height, width = cell if size is None else _check.one_or_two(_OP, "size", size)
    if height > cell[0] or width > cell[1]:
        raise ValueError(f"{_OP}: size must fit into a cell of {cell[0]} x {cell[1]}; got {height} x {width}")
    if not isinstance(normalize, bool):
        raise TypeError(f"{_OP}: normalize must be True or False; got {type(normalize).__name__}")
    generator = _check.generator(_OP, generator, images.device)
    room, jitter = (cell[0] - height, cell[1] - width), _check.whole(_OP, "jitter", jitter)
    if offsets is not None:
        _check_offsets(offsets, images, rows * columns, jitter)
    elif jitter:
        offsets = _drawn(images, rows * columns, room, jitter, generator)
    order = _cells(order, images, rows * columns)
    out: Tensor = _tiles.call(images, order, offsets, rows, columns, height, width, normalize, backend)
    return out


def _check_offsets(offsets: Tensor, images: Tensor, cells: int, jitter: int) -> None:
    if jitter:
        raise ValueError(f"{_OP}: offsets say where tiles begin, so jitter must be 0; got {jitter}")
    _check_int64("offsets", offsets, images)
    if offsets.shape != (len(images), cells, 2):
        raise ValueError(f"{_OP}: offsets must have shape ({len(images)}, {cells}, 2); got {_check.shape(offsets)}")


def _check_int64(name: str, value: object, images: Tensor) -> None:
    value = _check.tensor(_OP, name, value)
    if value.dtype != torch.int64:
        raise TypeError(f"{_OP}: {name} must be int64; got {value.dtype}")
    _check.one_device(_OP, ("images", images), (name, value))


def _drawn(images: Tensor, cells: int, room: tuple[int, int], jitter: int, generator: torch.Generator | None) -> Tensor:
    middle = (room[0] // 2, room[1] // 2)
    if not 0 <= jitter <= min(middle):
        raise ValueError(
            f"{_OP}: jitter must be in [0, {min(middle)}], for a tile has {room[0]} x {room[1]} pixels to move in; "
            f"got {jitter}"
        )
    shape = (len(images), cells, 2)
    if generator is None:  # torch.compile cannot trace generator=None for sizes that change
        drawn = torch.randint(-jitter, jitter + 1, shape, device=images.device)
    else:
        drawn = torch.randint(-jitter, jitter + 1, shape, generator=generator, device=images.device)
    for axis in (0, 1):  # a tensor of both would be copied to a GPU, which waits
        drawn[..., axis] += middle[axis]
    return drawn


def _cells(order: Tensor | None, images: Tensor, cells: int) -> Tensor:
    if order is None:
        return torch.arange(cells, device=images.device).expand(len(images), cells)
    _check_int64("order", order, images)
    if order.dim() == 1:
        order = order.expand(len(images), -1)
    if order.dim() != 2 or len(order) != len(images) or order.shape[1] == 0:
        raise ValueError(f"{_OP}: order must have shape (K) or ({len(images)}, K), K > 0; got {_check.shape(order)}")
    return order


def _refuse_outside(
    images: Tensor, order: Tensor, offsets: Tensor | None, rows: int, columns: int, height: int, width: int
) -> None:
    """Here and not before the op, for what a tensor holds is known only when it runs."""
    _check.in_range(_OP, "order", order, rows * columns)
    if offsets is not None:
        for axis, name, room in (
            (0, "rows", images.shape[2] // rows - height),
            (1, "columns", images.shape[3] // columns - width),
        ):
            _check.in_range(_OP, f"offsets' {name}", offsets[..., axis], room + 1)


def reference(
    images: Tensor,
    order: Tensor,
    offsets: Tensor | None,
    rows: int,
    columns: int,
    height: int,
    width: int,
    normalize: bool,
) -> Tensor:
    """The definition in plain torch: a gather of pixels, and an instance norm."""
    _refuse_outside(images, order, offsets, rows, columns, height, width)
    (batch, channels, *whole), device = images.shape, images.device
    cell = [whole[0] // rows, whole[1] // columns]
    places = []
    for axis, (number, tile) in enumerate(((order // columns, height), (order % columns, width))):
        first = (whole[axis] - (rows, columns)[axis] * cell[axis]) // 2 + number * cell[axis]
        inside = (cell[axis] - tile) // 2 if offsets is None else offsets[..., axis].gather(1, order)
        places.append((first + inside)[..., None] + torch.arange(tile, device=device))
    y, x = places[0][:, :, None, :, None], places[1][:, :, None, None, :]
    sample = torch.arange(batch, device=device).view(-1, 1, 1, 1, 1)
    cut = images[sample, torch.arange(channels, device=device).view(-1, 1, 1), y, x]
    if not normalize:
        return cut
    wide = cut.to(_native.accumulator(images.dtype))
    centred = wide - wide.mean((-2, -1), keepdim=True)
    return (centred * (centred.square().mean((-2, -1), keepdim=True) + _EPSILON).rsqrt()).to(images.dtype)


def _fake(
    images: Tensor,
    order: Tensor,
    offsets: Tensor | None,
    rows: int,
    columns: int,
    height: int,
    width: int,
    normalize: bool,
    backend: str | None = None,
) -> Tensor:
    return images.new_empty((*order.shape, images.shape[1], height, width))


def _run(
    kernel: Callable[..., None],
    last: int,
    images: Tensor,
    order: Tensor,
    offsets: Tensor | None,
    rows: int,
    columns: int,
    height: int,
    width: int,
    normalize: bool,
) -> Tensor:
    """A native kernel, whose last argument is the number of threads or the stream."""
    out = _fake(images, order, offsets, rows, columns, height, width, normalize)
    images, order = images.contiguous(), order.contiguous()
    offsets = None if offsets is None else offsets.contiguous()
    kernel(
        images.data_ptr(),
        order.data_ptr(),
        0 if offsets is None else offsets.data_ptr(),
        *images.shape,
        order.shape[1],
        rows,
        columns,
        height,
        width,
        _native.DTYPES[images.dtype],
        normalize,
        out.data_ptr(),
        last,
    )
    return out


def _cpu(images: Tensor, order: Tensor, offsets: Tensor | None, *settings: Any) -> Tensor:
    _refuse_outside(images, order, offsets, *settings[:4])
    return _run(_native.cpu.tiles, _native.threads(), images, order, offsets, *settings)


def _cuda(images: Tensor, order: Tensor, offsets: Tensor | None, *settings: Any) -> Tensor:
    with torch.cuda.device(images.device):
        return _run(_native.cuda.tiles, _native.stream(images), images, order, offsets, *settings)


def _cuda_unsupported(images: Tensor, order: Tensor, *_: Any) -> str | None:
    return native_cuda(images, order, blocks=order.numel() * images.shape[1])


_tiles = Op(
    "tiles(Tensor images, Tensor order, Tensor? offsets, int rows, int columns, int height, int width, "
    "bool normalize, str? backend) -> Tensor",
    {
        "cuda": Implementation(_cuda, _cuda_unsupported),
        "cpu": Implementation(_cpu, lambda images, order, *_: native_cpu(images, order)),
        "reference": Implementation(reference, anything),
    },
    _fake,
    lambda device: (
        torch.rand(2, 3, 7, 9, device=device),
        torch.tensor([[3, 0, 1], [2, 2, 1]], device=device),
        torch.zeros(2, 4, 2, dtype=torch.int64, device=device),
        *(2, 2, 3, 3),
        True,
    ),
)
refuse_gradient(_OP)
