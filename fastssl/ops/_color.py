"""What the colour ops share: the constants of sRGB and CIELAB, the quantised chroma, and the checks of images."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastssl.ops import _check, _native

# Linear sRGB to CIE XYZ and the D65 white point of the 2 degree observer, as scikit-image has them.
XYZ_FROM_RGB = ((0.412453, 0.357580, 0.180423), (0.212671, 0.715160, 0.072169), (0.019334, 0.119193, 0.950227))
RGB_FROM_XYZ = (
    (3.240481343200526, -1.5371515162713185, -0.4985363261688878),
    (-0.9692549499965682, 1.8759900014898907, 0.04155592655829284),
    (0.05564663913517716, -0.20404133836651123, 1.0573110696453443),
)
WHITE = (0.95047, 1.0, 1.08883)

# The lowest and the highest b of the published bins for a = -90, -80, ..., 100.
_LOWEST_B = (50, 20, 0, -20, -30, -40, -50, -50, -60, -70, -80, -80, -90, -100, -100, -110, -110, -110, -110, -90)
_HIGHEST_B = (90, 90, 90, 90, 100, 100, 100, 100, 100, 100, 90, 90, 90, 90, 80, 80, 80, 70, 70, 0)


def gamut_bins(*, device: torch.device | str | None = None) -> Tensor:
    """The 313 bins of the ab plane of colorization, on a grid of 10 (Zhang et al., arXiv:1603.08511, section 2.1).

    The paper calls them in gamut; its published points are, all but four, the corners of the cells of the grid that the
    sRGB gamut touches, which are 309. The nearest point of every sRGB colour is among them. In the published order,
    so that weights trained elsewhere fit.

    Returns:
        (313, 2) float32: a and b in CIE units.
    """
    rows = zip(range(-90, 101, 10), _LOWEST_B, _HIGHEST_B, strict=True)
    points = [(a, b) for a, low, high in rows for b in range(low, high + 1, 10)]
    return torch.tensor(points, dtype=torch.float32, device=device)


def check_image(op: str, name: str, value: object) -> Tensor:
    """``value`` must be a floating-point tensor (..., 3, H, W) that is not empty."""
    value = _check.tensor(op, name, value)
    if value.dtype not in _check.FLOATS:
        raise TypeError(f"{op}: {name} must be float32, bfloat16, float16 or float64; got {value.dtype}")
    if value.dim() < 3 or value.shape[-3] != 3:
        raise ValueError(f"{op}: {name} must have shape (..., 3, H, W); got {_check.shape(value)}")
    if value.numel() == 0:
        raise ValueError(f"{op}: {name} must not be empty; got {_check.shape(value)}")
    return value


def check_bins(op: str, bins: object, least: int, other: tuple[str, Tensor]) -> Tensor:
    """``bins`` must be a floating-point tensor (B, 2), B >= ``least``, on the device of the other tensor."""
    checked = _check.float_tensor(op, "bins", bins, "B2")
    if checked.shape[1] != 2 or len(checked) < least:
        raise ValueError(f"{op}: bins must have shape (B, 2) with B >= {least}; got {_check.shape(checked)}")
    if checked.device != other[1].device:
        raise ValueError(f"{op}: {other[0]} and bins must be on one device; got {other[1].device} and {checked.device}")
    return checked


def coordinates(bins: Tensor, dtype: torch.dtype) -> Tensor:
    """The bins as (2, B), contiguous, in the type that is computed in for tensors of ``dtype``."""
    return bins.to(_native.accumulator(dtype)).T.contiguous()


def mixed(rows: tuple[tuple[float, ...], ...], channels: tuple[Tensor, ...]) -> list[Tensor]:
    """A matrix by the three channels, which are tensors of one shape."""
    return [row[0] * channels[0] + row[1] * channels[1] + row[2] * channels[2] for row in rows]


def convert_on_cpu(kernel: str, image: Tensor) -> Tensor:
    """Runs a C++ kernel from (images, 3, plane) to the same shape and dtype."""
    return _converted(getattr(_native.cpu, kernel), image, _native.threads())


def convert_on_cuda(kernel: str, image: Tensor) -> Tensor:
    """Runs a CUDA kernel from (images, 3, plane) to the same shape and dtype."""
    with torch.cuda.device(image.device):
        return _converted(getattr(_native.cuda, kernel), image, _native.stream(image))


def _converted(kernel: Any, image: Tensor, threads_or_stream: int) -> Tensor:
    image = image.contiguous()
    out = torch.empty_like(image)
    plane = image.shape[-2] * image.shape[-1]
    images = image.numel() // (3 * plane)
    kernel(image.data_ptr(), images, plane, _native.DTYPES[image.dtype], out.data_ptr(), threads_or_stream)
    return out
