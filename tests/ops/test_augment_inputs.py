"""What augment refuses, and in which words."""

from __future__ import annotations

import pytest
import torch
from view_helpers import neutral

from fastssl.ops import PackedImages, ViewParams, augment

X, PARAMS = torch.zeros(2, 3, 9, 12, dtype=torch.uint8), neutral(1, 2, 9, 12)
PACKED = PackedImages(X.flatten(), torch.tensor([0, 324]), torch.tensor([9, 9]), torch.tensor([12, 12]))


def changed(**fields: object) -> dict[str, ViewParams]:
    return {"params": PARAMS._replace(**fields)}  # type: ignore[arg-type]


def box(*values: int) -> dict[str, ViewParams]:
    return changed(crop=torch.tensor(values).expand(1, 2, 4))


def places(**fields: object) -> dict[str, PackedImages]:
    return {"images": PACKED._replace(**fields)}  # type: ignore[arg-type]


BAD = [
    (dict(images=[1.0]), TypeError, "images must be a tensor; got list"),
    (dict(images=X.float()), TypeError, "images must be uint8; got torch.float32"),
    (dict(images=X[0]), ValueError, r"\(N, 3, H, W\) or \(N, H, W, 3\), none of them 0; got \(3, 9, 12\)"),
    (dict(images=X[:, :2]), ValueError, r"got \(2, 2, 9, 12\)"),
    (dict(images=X[:0]), ValueError, r"got \(0, 3, 9, 12\)"),
    (dict(params=tuple(PARAMS)), TypeError, "params must be ViewParams; got tuple"),
    (changed(flip=True), TypeError, "flip must be a tensor; got bool"),
    (changed(flip=PARAMS.flip.int()), TypeError, "flip must be bool; got torch.int32"),
    (changed(factors=PARAMS.factors.double()), TypeError, "factors must be float32; got torch.float64"),
    (changed(sigma=PARAMS.sigma[:, :1]), ValueError, r"sigma must have shape \(V, 2\), .*; got \(1, 1\)"),
    (changed(order=PARAMS.order[..., :3]), ValueError, r"order must have shape \(V, 2, 4\), .*; got \(1, 2, 3\)"),
    (changed(gray=PARAMS.gray.repeat(2, 1)), ValueError, r"gray must have shape .* got \(2, 2\)"),
    (dict(params=ViewParams(*(x[:0] for x in PARAMS))), ValueError, "V > 0"),
    (changed(gray=PARAMS.gray.to("meta")), ValueError, "gray must be on cpu; got meta"),
    (box(-1, 0, 9, 12), ValueError, r"part of its image; got \[-1, 0, 9, 12\] of image 0, .* are \[9, 12\]"),
    (box(0, 1, 9, 12), ValueError, r"got \[0, 1, 9, 12\]"),
    (box(1, 0, 9, 12), ValueError, r"got \[1, 0, 9, 12\]"),
    (box(0, 0, 0, 12), ValueError, r"got \[0, 0, 0, 12\]"),
    (box(2**63 - 1, 0, 2, 2), ValueError, "part of its image"),
    (changed(rot90=PARAMS.rot90 + 4), ValueError, r"rot90 must be in \[0, 4\); got 4"),
    (changed(order=PARAMS.order - 1), ValueError, r"order must be in \[0, 4\); got -1"),
    (changed(order=PARAMS.order // 2), ValueError, r"0, 1, 2 and 3 once each; got \[0, 0, 1, 1\]"),
    (changed(factors=PARAMS.factors - 2), ValueError, "saturation must be finite and 0 or more; got -1.0"),
    (changed(factors=PARAMS.factors / 0), ValueError, "saturation must be finite and 0 or more; got inf"),
    (changed(factors=PARAMS.factors + 0.6), ValueError, r"turn of the hue must be in \[-0.5, 0.5\]; got 0.6"),
    (changed(sigma=PARAMS.sigma - 1), ValueError, "sigma must be finite and 0 or more; got -1.0"),
    (changed(sigma=PARAMS.sigma / 0), ValueError, "sigma must be finite and 0 or more; got nan"),
    (dict(sizes=0), ValueError, r"sizes must be in \[1, 32768\]; got 0"),
    (dict(sizes=[3, 3]), ValueError, "one for each of 1 views; got 2"),
    (dict(sizes=2.0), TypeError, "sizes must be an integer; got float"),
    (dict(mean=0.5), ValueError, "mean must be three numbers; got 0.5"),
    (dict(mean=(0.5, 0.5, float("nan"))), ValueError, "mean must be finite; got nan"),
    (dict(std=(1, 1, 0)), ValueError, "std must be finite and above 0; got 0"),
    (dict(std=(1, 1)), ValueError, r"std must be three numbers; got \(1, 1\)"),
    (dict(interpolation="nearest"), ValueError, "'bilinear' or 'bicubic'; got 'nearest'"),
    (dict(dtype=torch.uint8), TypeError, "dtype must be float32, .*; got torch.uint8"),
    (dict(channels_last=1), TypeError, "channels_last must be True or False; got int"),
    (places(pixels=X.flatten().float()), TypeError, "pixels must be uint8; got torch.float32"),
    (places(pixels=X), ValueError, r"pixels must have shape \(bytes\); got \(2, 3, 9, 12\)"),
    (places(offsets=[0, 1]), ValueError, r"offsets must be a tensor \(N\) with N > 0; got list"),
    (places(heights=PACKED.heights[:1]), ValueError, r"heights must have shape \(2\); got \(1\)"),
    (places(widths=PACKED.widths.int()), TypeError, "widths must be int64; got torch.int32"),
    (places(offsets=PACKED.offsets + 1), ValueError, r"parts of 648 bytes; got \[325, 9, 12\] for image 1"),
    (places(offsets=PACKED.offsets - 1), ValueError, r"got \[-1, 9, 12\] for image 0"),
    (places(heights=PACKED.heights * 0), ValueError, r"got \[0, 0, 12\] for image 0"),
    (places(widths=PACKED.widths + 2**62), ValueError, "parts of 648 bytes"),
    (dict(backend="triton"), RuntimeError, "no such backend, only cuda, cpu, reference"),
]


@pytest.mark.parametrize(("change", "error", "message"), BAD, ids=[m[:40] for *_, m in BAD])
def test_bad_input_is_named(change: dict[str, object], error: type[Exception], message: str) -> None:
    arguments: dict[str, object] = dict(images=X, params=PARAMS, sizes=5)
    with pytest.raises(error, match=message):
        augment(**{**arguments, **change})  # type: ignore[arg-type]
