"""Augmented views of images: crop, flip, rotation, colour, blur and normalisation of each sample in one pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import conv2d, pad

from fastssl.ops import _check, _native, _views
from fastssl.ops._backend import Implementation, Op, anything, native_cpu, native_cuda, refuse_gradient
from fastssl.ops._views import PackedImages, ViewParams

_OP = "augment"
_LUMA = (0.2989, 0.587, 0.114)  # torchvision's


def augment(
    images: Tensor | PackedImages,
    params: ViewParams,
    sizes: int | Sequence[int],
    *,
    mean: Sequence[float] = (0.0, 0.0, 0.0),
    std: Sequence[float] = (1.0, 1.0, 1.0),
    interpolation: Literal["bilinear", "bicubic"] = "bilinear",
    dtype: torch.dtype = torch.float32,
    channels_last: bool = False,
    backend: str | None = None,
) -> list[Tensor]:
    """Views of a batch of images by given parameters; nothing is random, and any number of threads gives the same bits.

    Each view of each image takes these steps, as torchvision's v2 functions define them on floating-point images, in
    this order: the crop, resized to ``size`` x ``size`` with antialias; a left-right flip; quarter turns; brightness,
    contrast, saturation and hue in the sample's own order; grayscale; Gaussian blur; solarize (values of 0.5 and above
    are inverted); ``(x - mean) / std``. What is neutral is left out, and bicubic's overshoots are cut off. On uint8
    images torchvision rounds after every step: a single one is within 1 level in 255 of this (2 for saturation and the
    blur; more where bicubic overshoots), a chain of them need not be (docs/data.md). The blur's kernel spans a tenth of
    the side (SimCLR, arXiv:2002.05709, appendix A): ``2 * blur_radius(size) + 1`` pixels, with mirrored borders.
    ``fastssl.data.views.draw`` draws parameters by a plan.

    Args:
        images: (N, 3, H, W) or (N, H, W, 3) uint8, in any memory layout, or ``PackedImages`` of different sizes. A
            shape that fits both is taken for the first.
        params: what is done to each image for each of V views. The GPU's kernel lets nothing wait to see what they and
            the places of packed images hold: a view of what is outside its range is NaN.
        sizes: the side of a view in pixels, one for all or one for each.
        mean: subtracted from each channel of values in [0, 1].
        std: divides each channel after that.
        interpolation: of the resizing.
        dtype: float32, bfloat16 or float16 of the views, which are computed in float32; or float64, by the reference.
        channels_last: whether the views are laid out as ``torch.channels_last``.
        backend: the backend that must serve the call; by default our kernel if it can (see ``fastssl.ops.explain``).
    Returns:
        V views (N, 3, size, size) on the images' device.
    Raises:
        TypeError: for tensors of another dtype, or something that is no tensor or number.
        ValueError: for shapes, devices or sizes that do not agree, and for parameters outside their range, which are
            named (but see ``params``).
        RuntimeError: if ``backend`` cannot serve the call, or in a backward, which is not supported.
    """
    pixels, places = _views.check_images(_OP, images)
    count = len(pixels) if places is None else len(places)
    params = _views.check_params(_OP, params, count, pixels.device)
    sides = _views.check_sizes(_OP, sizes, len(params.crop))
    means, stds = _views.check_normalization(_OP, mean, std)
    if not isinstance(interpolation, str) or interpolation not in ("bilinear", "bicubic"):
        raise ValueError(f"{_OP}: interpolation must be 'bilinear' or 'bicubic'; got {interpolation!r}")
    if not isinstance(dtype, torch.dtype) or dtype not in _check.FLOATS:
        raise TypeError(f"{_OP}: dtype must be float32, bfloat16, float16 or float64; got {dtype}")
    if not isinstance(channels_last, bool):
        raise TypeError(f"{_OP}: channels_last must be True or False; got {type(channels_last).__name__}")
    bicubic = interpolation == "bicubic"
    views: list[Tensor] = _augment.call(
        pixels, places, *params, sides, means, stds, bicubic, dtype, channels_last, backend
    )
    return views


def blur_radius(size: int) -> int:
    """Pixels that the kernel of the blur reaches to each side, in a view of ``size`` pixels: a mirror has no more."""
    return min(max(1, size // 20), size - 1)


def reference(
    images: Tensor,
    places: Tensor | None,
    crop: Tensor,
    flip: Tensor,
    rot90: Tensor,
    order: Tensor,
    factors: Tensor,
    gray: Tensor,
    sigma: Tensor,
    solarize: Tensor,
    sizes: Sequence[int],
    mean: Sequence[float],
    std: Sequence[float],
    bicubic: bool,
    dtype: torch.dtype,
    channels_last: bool,
) -> list[Tensor]:
    """The definition in plain torch: one step after the other, in float32 (float64 where that is asked for)."""
    params = ViewParams(crop, flip, rot90, order, factors, gray, sigma, solarize)
    _views.refuse_outside(_OP, images, places, params)
    out = _fake(images, places, *params, sizes, mean, std, bicubic, dtype, channels_last)
    wide = _native.accumulator(dtype)
    means, stds = (torch.tensor(x, dtype=torch.float64).to(images.device, wide).view(3, 1, 1) for x in (mean, std))
    for v, view in enumerate(out):
        for part, batch in _batches(images, places):
            drawn = ViewParams(*(x[v, part] for x in params))
            view[part] = (_view(batch.to(wide), drawn, sizes[v], bicubic) - means) / stds
    return out


def _batches(images: Tensor, places: Tensor | None) -> list[tuple[slice, Tensor]]:
    """Images of one size together: (n, 3, H, W), and which they are."""
    if places is None:
        return [(slice(None), images)]
    found = []
    for i, (offset, height, width) in enumerate(places.tolist()):
        pixels = images[offset : offset + 3 * height * width].view(1, height, width, 3)
        found.append((slice(i, i + 1), pixels.movedim(3, 1)))
    return found


def _view(images: Tensor, drawn: ViewParams, size: int, bicubic: bool) -> Tensor:
    """(N, 3, H, W) in [0, 255] to (N, 3, size, size) in [0, 1]."""
    top, left, height, width = drawn.crop.unbind(1)
    rows = _resize_matrix(top, height, images.shape[2], size, bicubic).to(images.dtype)
    columns = _resize_matrix(left, width, images.shape[3], size, bicubic).to(images.dtype)
    columns = torch.where(drawn.flip[:, None, None], columns.flip(1), columns)
    x = (rows[:, None] @ images @ columns[:, None].mT) / 255
    x = x.clamp(0, 1) if bicubic else x
    for turns in (1, 2, 3):
        chosen = (drawn.rot90 == turns).nonzero()[:, 0]
        x[chosen] = x[chosen].rot90(turns, (2, 3))
    for place in range(4):
        for step, (change, neutral) in enumerate(zip(_CHANGES, _views.NEUTRAL, strict=True)):
            amount = drawn.factors[:, step].to(x.dtype)
            chosen = ((drawn.order[:, place] == step) & (amount != neutral)).nonzero()[:, 0]
            x[chosen] = change(x[chosen], amount[chosen, None, None, None])
    x = torch.where(drawn.gray[:, None, None, None], _luma(x), x)
    chosen = (drawn.sigma > 0).nonzero()[:, 0]
    x[chosen] = _blurred(x[chosen], drawn.sigma[chosen].to(x.dtype))
    return torch.where(drawn.solarize[:, None, None, None] & (x >= 0.5), 1 - x, x)


def _resize_matrix(start: Tensor, extent: Tensor, pixels: int, size: int, bicubic: bool) -> Tensor:
    """(N, size, pixels) weights that resize [start, start + extent) of a line of ``pixels`` to ``size``.

    A triangle, or Keys' cubic with a = -0.5, as much wider as an output pixel is than an input pixel, cut at the ends
    of the crop, each row summing to 1: torch's and Pillow's.
    """
    step = extent[:, None, None].double() / size
    centres = (torch.arange(size, device=start.device)[:, None] + 0.5) * step
    inputs = torch.arange(pixels, device=start.device) - start[:, None, None]
    x = (inputs + 0.5 - centres).abs() / step.clamp(min=1)
    if bicubic:
        near, far = (1.5 * x - 2.5) * x * x + 1, ((2.5 - 0.5 * x) * x - 4) * x + 2
        weights = torch.where(x < 1, near, torch.where(x < 2, far, 0.0))
    else:
        weights = (1 - x).clamp(min=0)
    weights = torch.where((inputs >= 0) & (inputs < extent[:, None, None]), weights, 0.0)
    return weights / weights.sum(2, keepdim=True)


def _luma(x: Tensor) -> Tensor:
    """(N, 1, H, W): the grey value of each pixel."""
    red, green, blue = (x[:, i : i + 1] * weight for i, weight in enumerate(_LUMA))
    return red + green + blue


def _blend(x: Tensor, other: Tensor, factor: Tensor) -> Tensor:
    return (factor * x + (1 - factor) * other).clamp(0, 1)


def _turn_hue(x: Tensor, turn: Tensor) -> Tensor:
    """Adds to the hue of HSV; value and chroma stay, so that only the sector has to be found.

    With the hue in sixths of a turn, channel n of (5, 3, 1) for red, green, blue is
    value - chroma * clamp(min(k, 4 - k), 0, 1), where k = (n + hue) mod 6.
    """
    red, green, blue = (x[:, i : i + 1] for i in range(3))
    value = x.amax(1, keepdim=True)
    chroma = value - x.amin(1, keepdim=True)
    divisor = torch.where(chroma > 0, chroma, 1.0)  # a grey's hue has no effect
    of_blue = torch.where(value == green, 2 + (blue - red) / divisor, 4 + (red - green) / divisor)
    hue = torch.where(value == red, (green - blue) / divisor, of_blue) + 6 * turn
    k = (torch.tensor([5.0, 3.0, 1.0], dtype=x.dtype, device=x.device).view(3, 1, 1) + hue).remainder(6)
    return value - chroma * torch.minimum(k, 4 - k).clamp(0, 1)


_CHANGES: tuple[Callable[[Tensor, Tensor], Tensor], ...] = (
    lambda x, factor: (factor * x).clamp(0, 1),
    lambda x, factor: _blend(x, _luma(x).mean((2, 3), keepdim=True), factor),
    lambda x, factor: _blend(x, _luma(x), factor),
    _turn_hue,
)


def _blurred(x: Tensor, sigma: Tensor) -> Tensor:
    """Each sample with its own ``sigma`` > 0, in pixels; borders are mirrored."""
    count, _, size, _ = x.shape
    if count == 0:
        return x
    radius = blur_radius(size)
    taps = torch.arange(-radius, radius + 1, device=x.device)
    kernel = torch.softmax(-((taps / sigma[:, None]) ** 2) / 2, dim=1).repeat_interleave(3, 0)[:, None]
    planes = pad(x, [radius] * 4, mode="reflect").flatten(0, 1)[None]
    planes = conv2d(planes, kernel[:, :, :, None], groups=3 * count)
    return conv2d(planes, kernel[:, :, None], groups=3 * count).view(x.shape)


def _fake(images: Tensor, places: Tensor | None, crop: Tensor, *rest: Any) -> list[Tensor]:
    sizes, _, _, _, dtype, channels_last, *_ = rest[7:]
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return [
        torch.empty((crop.shape[1], 3, size, size), dtype=dtype, device=images.device, memory_format=layout)
        for size in sizes
    ]


def _run(
    kernel: Callable[..., None], last: tuple[int, ...], images: Tensor, places: Tensor | None, *rest: Any
) -> list[Tensor]:
    """A native kernel, which makes one view of each image at a time; ``last``: what it alone takes."""
    params, (sizes, mean, std, bicubic, dtype, channels_last) = ViewParams(*rest[:8]), rest[8:]
    out = _fake(images, places, *rest)
    drawn = [x.contiguous() for x in params]
    places = None if places is None else places.contiguous()
    # x -> x * scale + bias of values in [0, 255]
    scale, bias = [1 / (255 * s) for s in std], [-m / s for m, s in zip(mean, std, strict=True)]
    normalization = torch.tensor([scale, bias], dtype=torch.float64, device="cpu").float()
    for v, (view, size) in enumerate(zip(out, sizes, strict=True)):
        kernel(
            images.data_ptr(),
            0 if places is None else places.data_ptr(),
            params.crop.shape[1],
            *(images.stride() if places is None else (0, 1, 0, 3)),
            *(x[v].data_ptr() for x in drawn),
            size,
            normalization.data_ptr(),
            bicubic,
            _native.DTYPES[dtype],
            channels_last,
            view.data_ptr(),
            *last,
        )
    return out


def _cpu(images: Tensor, places: Tensor | None, *rest: Any) -> list[Tensor]:
    _views.refuse_outside(_OP, images, places, ViewParams(*rest[:8]))
    return _run(_native.cpu.augment, (_native.threads(),), images, places, *rest)


def _cuda(images: Tensor, places: Tensor | None, crop: Tensor, *rest: Any) -> list[Tensor]:
    bounds = (*images.shape[2:], 0) if places is None else (0, 0, len(images))
    scratch = _native.scratch(images, 8 * _most_blocks(crop, rest[7]))  # the views take turns with it
    with torch.cuda.device(images.device):
        last = (*bounds, scratch.data_ptr(), _native.stream(images))
        return _run(_native.cuda.augment, last, images, places, crop, *rest)


def _most_blocks(crop: Tensor, sizes: Sequence[int]) -> int:
    return max(int(_native.cuda.augment_blocks(crop.shape[1], size)) for size in sizes)


def _not_as(dtype: torch.dtype) -> str | None:
    """Why the native kernels cannot give views of ``dtype``."""
    if dtype == torch.float64:
        return "it gives float32, bfloat16 and float16, and was asked for torch.float64"
    return None


def _not_on_cpu(images: Tensor, places: Tensor | None, *rest: Any) -> str | None:
    return _not_as(rest[12]) or native_cpu(images, *rest[:8])


def _not_on_cuda(images: Tensor, places: Tensor | None, *rest: Any) -> str | None:
    sizes = rest[8]
    if reason := _not_as(rest[12]) or native_cuda(images, *rest[:8]):
        return reason
    if max(sizes) > _native.cuda.augment_largest():
        return f"it makes views of at most {_native.cuda.augment_largest()} pixels a side, got {max(sizes)}"
    if places is None and max(images.shape[2:]) >= 2**31:
        return f"it takes images of less than 2^31 pixels a side, got {max(images.shape[2:])}"
    return native_cuda(images, blocks=_most_blocks(rest[0], sizes))


def _example(device: torch.device) -> tuple[Any, ...]:
    def made(values: object, dtype: torch.dtype = torch.float32) -> Tensor:
        value = torch.tensor(values, dtype=dtype, device=device)
        return value.expand(2, 2, *value.shape).clone()

    params = ViewParams(
        crop=made([1, 2, 5, 4], torch.int64),
        flip=made(True, torch.bool),
        rot90=made(1, torch.int64),
        order=made([2, 0, 3, 1], torch.int64),
        factors=made([0.7, 1.4, 0.5, 0.1]),
        gray=made(False, torch.bool),
        sigma=made(1.0),
        solarize=made(True, torch.bool),
    )
    images = torch.randint(256, (2, 3, 7, 6), dtype=torch.uint8, device=device)
    return images, None, *params, [5, 3], [0.5] * 3, [0.25] * 3, False, torch.float32, False


_augment = Op(
    "augment(Tensor images, Tensor? places, Tensor crop, Tensor flip, Tensor rot90, Tensor order, Tensor factors, "
    "Tensor gray, Tensor sigma, Tensor solarize, SymInt[] sizes, float[] mean, float[] std, bool bicubic, "
    "ScalarType dtype, bool channels_last, str? backend) -> Tensor[]",
    {
        "cuda": Implementation(_cuda, _not_on_cuda),
        "cpu": Implementation(_cpu, _not_on_cpu),
        "reference": Implementation(reference, anything),
    },
    _fake,
    _example,
)
refuse_gradient(_OP)
