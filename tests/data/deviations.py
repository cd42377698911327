"""How far our views are from torchvision's own paths, a JPEG's at half its size, and DALI's crops: for docs/data.md.

python tests/data/deviations.py [--count 60] [--folder PHOTOS]

All in levels of 255, on drawings of the embedded set and on smooth noisy images as large as photographs, or on those of
a folder; needs torchvision, and DALI for its part.
"""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "ops"), str(ROOT / "tests" / "data")]

from dali_helpers import MISSING, RAW, bare, files, photo  # noqa: E402
from image_files import encode, noise  # noqa: E402
from view_helpers import by_torchvision  # noqa: E402

from benchmarks import rivals  # noqa: E402
from fastssl.data import plans  # noqa: E402
from fastssl.data.dali import DaliLoader  # noqa: E402
from fastssl.data.decode import decode_full  # noqa: E402
from fastssl.data.images import load_all  # noqa: E402
from fastssl.data.plans import ViewPlan  # noqa: E402
from fastssl.data.sources import list_images  # noqa: E402
from fastssl.data.views import draw, make_views  # noqa: E402
from fastssl.ops import PackedImages, ViewParams  # noqa: E402

NAMES = ("simclr", "moco_v2", "byol", "dino")
SIZE = 96
HALF, QUALITY = 2, 90
NEUTRAL = (1.0, 1.0, 1.0, 0.0)
Pictures = Sequence[Image.Image]


def raw(plan: ViewPlan, interpolation: str) -> ViewPlan:
    """In [0, 1]."""
    others = tuple(raw(part, interpolation) for part in plan.others)
    return replace(plan, **RAW, interpolation=interpolation, others=others)


def ours(image: Image.Image, plan: ViewPlan, params: ViewParams) -> list[Tensor]:
    """The views of an image, (3, size, size) in levels."""
    pixels = torch.tensor(np.asarray(image)).movedim(2, 0)[None]
    return [255 * view[0] for view in make_views(pixels, plan, torch.Generator(), params=params)]


def drawn(params: ViewParams, plan: ViewPlan, view: int) -> dict[str, Any]:
    """One view of one image as `by_torchvision` takes it: steps that change nothing are left out, as by its classes."""
    one = {name: x[view, 0].tolist() for name, x in params._asdict().items()}
    order = [step for step in one["order"] if one["factors"][step] != torch.tensor(NEUTRAL)[step]]
    return {**one, "order": order, "size": plan.sizes[view], "bicubic": plan.interpolation == "bicubic"}


def apart(pictures: Pictures, plan: ViewPlan, theirs: Callable[[Image.Image, dict[str, Any]], Tensor]) -> Tensor:
    """The differences of all values of all views, in levels."""
    found = []
    for i, image in enumerate(pictures):
        params = draw(plan, (image.height, image.width), torch.Generator().manual_seed(i), count=1)
        for view, mine in enumerate(ours(image, plan, params)):
            found.append((mine - theirs(image, drawn(params, plan, view))).abs().flatten())
    return torch.cat(found)


def told(what: str, differences: Tensor) -> None:
    mean, most, share = differences.mean(), differences.max(), 100 * (differences > 4).double().mean()
    print(f"{what:58} mean {mean:6.3f}  above 4 levels {share:6.3f} %  at most {most:6.2f}", flush=True)


def torchvisions_paths(sets: dict[str, Pictures], names: Sequence[str] = NAMES) -> Iterator[tuple[str, Tensor]]:
    """What is compared, in words, and the differences."""
    functional = rivals.load("torchvision.transforms.v2.functional")

    def on_floats(image: Image.Image, one: dict[str, Any]) -> Tensor:
        return 255 * by_torchvision(functional, functional.to_image(image).float() / 255, one)

    def on_bytes(image: Image.Image, one: dict[str, Any]) -> Tensor:
        return by_torchvision(functional, functional.to_image(image).as_subclass(Tensor), one).float()

    def on_pillow(image: Image.Image, one: dict[str, Any]) -> Tensor:
        return functional.pil_to_tensor(by_torchvision(functional, image, one)).float()

    for path in (on_floats, on_bytes, on_pillow):
        for how in ("bilinear", "bicubic"):
            for kind, pictures in sets.items():
                label = f"torchvision {path.__name__}, {how}, {kind}"
                yield f"{label}: resized alone", apart(pictures, raw(bare(plans.simclr(SIZE)), how), path)
                for name in names:
                    yield f"{label}: {name}", apart(pictures, raw(plans.get(name)(SIZE), how), path)


def half_size(pictures: Pictures) -> None:
    """Views of crops of a JPEG that was decoded at half its size, as libjpeg does it in less time."""
    plan = raw(bare(plans.simclr(SIZE)), "bilinear")
    anywhere, even = [], []
    for i, image in enumerate(pictures):
        data = encode(image, "JPEG", quality=QUALITY)
        full = decode_full(data)
        with Image.open(io.BytesIO(data)) as opened:
            opened.draft("RGB", (image.width // HALF, image.height // HALF))
            half = np.asarray(opened)
        params = draw(plan, full.shape[:2], torch.Generator().manual_seed(i), count=1)
        for differences, crop in ((anywhere, params.crop), (even, params.crop // HALF * HALF)):
            asked = ours(Image.fromarray(full), plan, params._replace(crop=crop))
            given = ours(Image.fromarray(half), plan, params._replace(crop=crop // HALF))
            differences += [(a - b).abs().flatten() for a, b in zip(asked, given, strict=True)]
    told("a JPEG at half its size, crops anywhere", torch.cat(anywhere))
    told("a JPEG at half its size, crops at every second pixel", torch.cat(even))


def dali_crops(sets: dict[str, Pictures]) -> None:
    """Crops alone; *inside* is without the pixels at the edges of a view."""
    for kind, pictures in sets.items():
        for how in ("bilinear", "bicubic"):
            for size in (8, 32, 96, 224):
                plan = raw(bare(plans.simclr(size)), how)
                everywhere, inside = [], []
                for a, b in dalis_and_ours(pictures, plan):
                    differences = 255 * (a - b).abs()
                    everywhere.append(differences.flatten())
                    inside.append(differences[..., 2:-2, 2:-2].flatten())
                told(f"DALI, {how}, {kind} to {size}", torch.cat(everywhere))
                told(f"DALI, {how}, {kind} to {size}, inside", torch.cat(inside))


def dalis_and_ours(pictures: Pictures, plan: ViewPlan) -> Iterator[tuple[Tensor, Tensor]]:
    """Views (1, 3, size, size) of images of any shapes."""
    with DaliLoader(files([encode(image) for image in pictures]), plan, 1, 0) as loader:
        steps = zip(loader.epoch(0), loader.schedule.chosen(0), strict=True)
        for views, (step, chosen) in steps:
            image = torch.tensor(np.asarray(pictures[int(chosen)]))
            one = PackedImages(image.flatten(), *(torch.tensor([x]) for x in (0, *image.shape[:2])))
            yield from zip(views, make_views(one, plan, loader.schedule.generator(0, step)), strict=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=60, help="images of each kind")
    parser.add_argument("--folder", type=Path, help="photographs, in place of smooth noisy images")
    given = parser.parse_args()
    drawings = load_all("clipart", size=64).images[: given.count]
    sets: dict[str, Pictures] = {"drawings": [Image.fromarray(x.movedim(0, 2).numpy()) for x in drawings]}
    if given.folder is None:
        sets["smooth"] = [photo(i, 375, 500) for i in range(given.count)]
    else:
        entries = list_images(given.folder).entries
        step = max(1, len(entries) // given.count)
        sets["photographs"] = [Image.fromarray(decode_full(e.read())) for e in list(entries)[::step][: given.count]]
    for what, differences in torchvisions_paths(sets):
        told(what, differences)
    half_size(list(sets.values())[-1])
    if MISSING:
        print(MISSING)
        return
    noises = [noise(260, 200, seed=i) for i in range(20)]
    dali_crops({**{kind: pictures[:40] for kind, pictures in sets.items()}, "noise": noises})


if __name__ == "__main__":
    main()
