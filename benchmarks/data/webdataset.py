"""SimCLR's views and DINO's from WebDataset shards of JPEG files of 500 x 375: ours, and the package's own pipeline.

Every provider decodes every file at every call, as an epoch does, and shuffles shards and samples. The ``webdataset``
package's pipeline is the one of its documentation: torchvision augments what Pillow decoded, image by image, in two
workers of torch's DataLoader. A case of N images in t ms serves 1000 N / t images a second.
"""

from __future__ import annotations

import atexit
import functools
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from PIL import Image
from torch import Tensor

from benchmarks import where
from benchmarks.data.from_files import BATCH, HEIGHT, WIDTH, Epochs, folder, sizes
from benchmarks.harness import OURS, Case, Work
from benchmarks.ops.augment import PLANS, WORKERS, torchvision_transform
from fastssl.data.plans import ViewPlan
from fastssl.data.shards import require
from fastssl.data.webdataset import ShardLoader, list_shards, pack

SHARDS = 8


@functools.cache
def shards(n: int) -> Path:
    """A folder, kept till the end, of ``n`` JPEG files in shards."""
    made = Path(tempfile.mkdtemp(prefix="fastssl-shards-"))
    atexit.register(shutil.rmtree, made, ignore_errors=True)
    pack(str(folder(n)), made, per_shard=-(-n // SHARDS))
    return made


def by_shard_loader(plan: ViewPlan, n: int) -> Work:
    return Epochs(ShardLoader(list_shards(str(shards(n))), plan, BATCH, 0, device=where.device()).epoch, plan)


class Augmented:
    """All views of one image, by torchvision."""

    def __init__(self, plan: ViewPlan) -> None:
        self.transforms = [torchvision_transform(part) for part in plan.parts for _ in range(part.views)]

    def __call__(self, image: Image.Image) -> list[Tensor]:
        return [transform(image) for transform in self.transforms]


def _only(sample: tuple[Image.Image]) -> Image.Image:
    return sample[0]


def by_webdataset(plan: ViewPlan, n: int) -> Work:
    wds = require()
    paths = [str(path) for path in sorted(shards(n).glob("*.tar"))]
    samples = wds.WebDataset(paths, shardshuffle=len(paths)).shuffle(1000).decode("pilrgb").to_tuple("jpg")
    views = samples.map(_only).map(Augmented(plan))
    loader = wds.WebLoader(views, batch_size=BATCH, num_workers=WORKERS, persistent_workers=True)
    return Epochs(lambda epoch: ([view.to(where.device()) for view in batch] for batch in loader), plan)


def cases() -> list[Case]:
    makers: dict[str, Callable[..., Work]] = {
        OURS: by_shard_loader,
        f"webdataset and torchvision, {WORKERS} workers": by_webdataset,
    }
    return [
        Case(
            op="webdataset",
            shape=f"{plan} {size}, {n} JPEG files of {HEIGHT} x {WIDTH} in {SHARDS} shards",
            dtype="float32",
            providers={name: functools.partial(make, PLANS[plan](size), n) for name, make in makers.items()},
        )
        for plan, size, n in sizes()
    ]
