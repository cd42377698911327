"""sRGB to CIELAB in one pass over the pixels."""

from __future__ import annotations

import torch
from torch import Tensor

from fastssl.ops import _color, _native
from fastssl.ops._backend import Implementation, Op, anything, native_cpu, native_cuda, refuse_gradient

_OP = "rgb_to_lab"


def rgb_to_lab(rgb: Tensor, *, backend: str | None = None) -> Tensor:
    """CIELAB of sRGB colours (IEC 61966-2-1; CIE 15, D65, 2 degree observer), as ``skimage.color.rgb2lab`` has it.

    Deterministic. Computed in float32 (float64 for float64); powers are exact to a unit in the last place or two.

    Args:
        rgb: (..., 3, H, W) float32, bfloat16, float16 or float64, gamma-encoded, in [0, 1]. Values outside follow the
            same formula; NaN and infinity give NaN.
        backend: the backend that must serve the call; by default our kernel if it can (see ``fastssl.ops.explain``).
    Returns:
        (..., 3, H, W), dtype of ``rgb``: L in [0, 100], a in about [-87, 99], b in about [-108, 95].
    Raises:
        TypeError: for a dtype that is not one of the above.
        ValueError: for another shape, or an empty one.
        RuntimeError: if ``backend`` cannot serve the call, or in a backward, which is not supported.
    """
    lab: Tensor = _rgb_to_lab.call(_color.check_image(_OP, "rgb", rgb), backend)
    return lab


def reference(rgb: Tensor) -> Tensor:
    """The formula in plain torch."""
    x = rgb.to(_native.accumulator(rgb.dtype))
    linear = torch.where(x > 0.04045, ((x + 0.055) / 1.055) ** 2.4, x / 12.92)
    xyz = _color.mixed(_color.XYZ_FROM_RGB, linear.unbind(-3))
    t = torch.stack([channel / white for channel, white in zip(xyz, _color.WHITE, strict=True)], dim=-3)
    # t ** (1 / 3) of a negative t, which is not taken, is NaN
    f = torch.where(t > 0.008856, t ** (1 / 3), 7.787 * t + 16 / 116)
    fx, fy, fz = f.unbind(-3)
    return torch.stack([116 * fy - 16, 500 * (fx - fy), 200 * (fy - fz)], dim=-3).to(rgb.dtype)


def _fake(rgb: Tensor, backend: str | None = None) -> Tensor:
    return rgb.new_empty(rgb.shape)


_rgb_to_lab = Op(
    "rgb_to_lab(Tensor rgb, str? backend) -> Tensor",
    {
        "cuda": Implementation(lambda rgb: _color.convert_on_cuda(_OP, rgb), native_cuda),
        "cpu": Implementation(lambda rgb: _color.convert_on_cpu(_OP, rgb), native_cpu),
        "reference": Implementation(reference, anything),
    },
    _fake,
    lambda device: (torch.rand(2, 3, 4, 5, device=device),),
)
refuse_gradient(_OP)
