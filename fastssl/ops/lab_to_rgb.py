"""CIELAB to sRGB in one pass over the pixels."""

from __future__ import annotations

import torch
from torch import Tensor

from fastssl.ops import _color, _native
from fastssl.ops._backend import Implementation, Op, anything, native_cpu, native_cuda, refuse_gradient

_OP = "lab_to_rgb"


def lab_to_rgb(lab: Tensor, *, backend: str | None = None) -> Tensor:
    """sRGB of CIELAB colours, the inverse of :func:`fastssl.ops.rgb_to_lab`, as ``skimage.color.lab2rgb`` has it.

    Colours outside the gamut of sRGB are clamped, channel by channel, to [0, 1]; a Z below 0 counts as 0.
    Deterministic. Computed in float32 (float64 for float64).

    Args:
        lab: (..., 3, H, W) float32, bfloat16, float16 or float64: L in [0, 100], a and b in CIE units. NaN gives NaN.
        backend: the backend that must serve the call; by default our kernel if it can (see ``fastssl.ops.explain``).
    Returns:
        (..., 3, H, W), dtype of ``lab``, gamma-encoded, in [0, 1].
    Raises:
        TypeError: for a dtype that is not one of the above.
        ValueError: for another shape, or an empty one.
        RuntimeError: if ``backend`` cannot serve the call, or in a backward, which is not supported.
    """
    rgb: Tensor = _lab_to_rgb.call(_color.check_image(_OP, "lab", lab), backend)
    return rgb


def reference(lab: Tensor) -> Tensor:
    """The formula in plain torch."""
    lightness, a, b = lab.to(_native.accumulator(lab.dtype)).unbind(-3)
    fy = (lightness + 16) / 116
    f = torch.stack([fy + a / 500, fy, (fy - b / 200).clamp(min=0)], dim=-3)
    t = torch.where(f > 0.2068966, f**3, (f - 16 / 116) / 7.787)
    xyz = [channel * white for channel, white in zip(t.unbind(-3), _color.WHITE, strict=True)]
    linear = torch.stack(_color.mixed(_color.RGB_FROM_XYZ, tuple(xyz)), dim=-3)
    rgb = torch.where(linear > 0.0031308, 1.055 * linear ** (1 / 2.4) - 0.055, 12.92 * linear)
    return rgb.clamp(0, 1).to(lab.dtype)


def _fake(lab: Tensor, backend: str | None = None) -> Tensor:
    return lab.new_empty(lab.shape)


_lab_to_rgb = Op(
    "lab_to_rgb(Tensor lab, str? backend) -> Tensor",
    {
        "cuda": Implementation(lambda lab: _color.convert_on_cuda(_OP, lab), native_cuda),
        "cpu": Implementation(lambda lab: _color.convert_on_cpu(_OP, lab), native_cpu),
        "reference": Implementation(reference, anything),
    },
    _fake,
    lambda device: (50 * torch.rand(2, 3, 4, 5, device=device),),
)
refuse_gradient(_OP)
