"""What a user writes with DALI alone: its reader, decoders, random crops and colour operators, as documented.

What these do is not torchvision's to the pixel: the hue turns in YIQ, contrast centres on 128, and the steps of colour
jitter have one order for all. A step that is taken for some samples only has its strength multiplied by a coin's 0 or
1, and the window of the blur is left to DALI: both are faster than the conditionals and windows of its examples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import where
from fastssl.data import dali
from fastssl.data.plans import ViewPlan

READER = "files"


def batches(
    plan: ViewPlan, paths: Sequence[Path], batch_size: int, *, decode_each_crop: bool
) -> Callable[[int], Iterator[list[Tensor]]]:
    """An epoch of views of all files, by DALI's iterator for PyTorch; in GPU memory where cases run on a GPU.

    Args:
        decode_each_crop: whether each view decodes the part of the file that it shows, as the documentation does for
            one view; else a file is decoded once and all views are cropped from it.
    """
    dali.require()
    pytorch = import_module("nvidia.dali.plugin.pytorch")
    pipeline = import_module("nvidia.dali").Pipeline(
        batch_size, torch.get_num_threads(), device_id=torch.cuda.current_device() if where.on_gpu() else None, seed=0
    )
    with pipeline:
        pipeline.set_outputs(*_views(plan, paths, decode_each_crop))
    names = [f"view{v}" for v in range(plan.total)]
    iterator = pytorch.DALIGenericIterator(
        [pipeline], names, reader_name=READER, auto_reset=True, last_batch_policy=pytorch.LastBatchPolicy.DROP
    )
    return lambda epoch: ([batch[0][name] for name in names] for batch in iterator)


def _views(plan: ViewPlan, paths: Sequence[Path], decode_each_crop: bool) -> list[Any]:
    fn, types = import_module("nvidia.dali.fn"), import_module("nvidia.dali.types")
    device = "mixed" if where.on_gpu() else "cpu"
    data, _ = fn.readers.file(files=[str(path) for path in paths], random_shuffle=True, name=READER)
    whole = None if decode_each_crop else fn.decoders.image(data, device=device, output_type=types.RGB)
    views = []
    for part in [each for each in plan.parts for _ in range(each.views)]:
        how = {"bilinear": types.INTERP_LINEAR, "bicubic": types.INTERP_CUBIC}[part.interpolation]
        box = dict(random_area=part.crop_scale, random_aspect_ratio=part.crop_ratio)
        size = dict(size=(part.size, part.size), interp_type=how, antialias=True)
        if whole is None:
            crop = fn.decoders.image_random_crop(data, device=device, output_type=types.RGB, **box)
            views.append(_augmented(part, fn.resize(crop, **size)))
        else:
            views.append(_augmented(part, fn.random_resized_crop(whole, **box, **size)))
    return views


def _augmented(plan: ViewPlan, images: Any) -> Any:
    """All steps of a view but its crop."""
    fn, types = import_module("nvidia.dali.fn"), import_module("nvidia.dali.types")

    def coin(probability: float, dtype: Any = types.FLOAT) -> Any:
        return fn.cast(fn.random.coin_flip(probability=probability), dtype=dtype)

    def change(low: float, high: float) -> Any:
        return fn.random.uniform(range=(low, high))

    jittered = coin(plan.jitter)
    brightness, contrast, saturation = (
        1.0 + jittered * change(max(-by, -1.0), by) for by in (plan.brightness, plan.contrast, plan.saturation)
    )
    images = fn.color_twist(
        images,
        brightness=brightness,
        contrast=contrast,
        saturation=saturation * (1.0 - coin(plan.grayscale)),
        hue=360.0 * jittered * change(-plan.hue, plan.hue),
    )
    if plan.blur:
        # a window of 0 is DALI's own choice, one of 1 leaves a sample as it is
        window = 1 - coin(plan.blur, types.INT32)
        images = fn.gaussian_blur(images, sigma=change(*plan.blur_sigma), window_size=window)
    if plan.solarize:
        bright = fn.cast(images >= 128, dtype=types.UINT8) * coin(plan.solarize, types.UINT8)
        images = images ^ (bright * types.Constant(255, dtype=types.UINT8))
    return fn.crop_mirror_normalize(
        images,
        dtype=types.FLOAT,
        output_layout="CHW",
        mean=[255 * x for x in plan.mean],
        std=[255 * x for x in plan.std],
        mirror=coin(plan.flip, types.INT32),
    )
