"""From a folder of 100,000 JPEG files to the first batch of views, in a process that has everything imported.

``fastssl`` has decoded the images once before, and maps what it kept of them; *the first time* nothing is kept yet: it
makes room for all of them and decodes the first batch (and those made ahead). *streamed* decodes likewise, and keeps
nothing. torchvision's ``ImageFolder`` lists the files, and
its first batch is made in the process, without workers to start. The files are of one colour and 8 x 8 pixels, so that
listing them and not decoding them is what is measured; the disk's own first look at them is not, for the system has
seen them when they were made. Nor is what a command takes before all that, to start Python and import torch.
"""

from __future__ import annotations

import atexit
import functools
import io
import itertools
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from PIL import Image

from benchmarks import rivals, where
from benchmarks.harness import OURS, Case, Work
from benchmarks.ops.augment import torchvision_transform
from fastssl.data import images, plans
from fastssl.data.cache import Cache
from fastssl.data.loader import Loader
from fastssl.data.stream import StreamLoader
from fastssl.train.reproduce import fingerprint

SIZE, BATCH, CLASSES = 32, 256, 100


@functools.cache
def folder(n: int) -> Path:
    """A folder, kept till the end, of ``n`` image files in as many classes as there are."""
    made = Path(tempfile.mkdtemp(prefix="fastssl-start-"))
    atexit.register(shutil.rmtree, made, ignore_errors=True)
    for i in range(CLASSES):
        place = made / "images" / f"{i:03}"
        place.mkdir(parents=True)
        content = io.BytesIO()
        Image.new("RGB", (8, 8), (2 * i, 255 - 2 * i, 90)).save(content, "JPEG")
        for k in range(n // CLASSES):
            (place / f"{k:06}.jpg").write_bytes(content.getvalue())
    return made / "images"


def _first_batch(n: int, cache: Cache) -> int:
    train = images.load_lazily(str(folder(n)), size=SIZE, cache=cache).train
    fingerprint(train.images)
    return len(next(Loader(train, plans.simclr(SIZE), BATCH, 0, where.device()).epoch(0)))


def by_cache(n: int) -> Work:
    cache = Cache(folder(n).parent / "cache")
    images.load(str(folder(n)), size=SIZE, cache=cache)
    return functools.partial(_first_batch, n, cache)


def by_new_cache(n: int) -> Work:
    new = itertools.count()  # of which none is cleared away while time is taken
    return lambda: _first_batch(n, Cache(folder(n).parent / f"new-{next(new)}"))


def by_stream(n: int) -> Work:
    def start() -> int:
        train = images.stream(str(folder(n)), size=SIZE).train
        fingerprint(train.images)
        with StreamLoader(
            images.files_of(train, "stream"), plans.simclr(SIZE), BATCH, 0, device=where.device()
        ) as files:
            batches = files.epoch(0)
            return len(next(batches))

    return start


def by_torchvision(n: int) -> Work:
    datasets = rivals.load("torchvision.datasets")
    transform = torchvision_transform(plans.simclr(SIZE))

    def start() -> int:
        data = datasets.ImageFolder(folder(n), lambda image: [transform(image) for _ in range(2)])
        views, _ = next(iter(torch.utils.data.DataLoader(data, BATCH, shuffle=True)))
        return len(views)

    return start


def cases() -> list[Case]:
    makers: dict[str, Callable[[int], Work]] = {
        OURS: by_cache,
        "fastssl, the first time": by_new_cache,
        "fastssl, streamed": by_stream,
        "torchvision ImageFolder": by_torchvision,
    }
    n = 100_000
    return [
        Case(
            op="start",
            shape=f"SimCLR {SIZE}, a folder of {n} JPEG files",
            dtype="float32",
            providers={name: functools.partial(make, n) for name, make in makers.items()},
        )
    ]
