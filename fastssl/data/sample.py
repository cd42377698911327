"""A few images of a source that may be large: to look at, or to measure with."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace

import torch
from torch import Tensor

from fastssl.data import shards
from fastssl.data.images import ImageSet, list_files, load_all
from fastssl.data.reading import Progress, decode_all, quote
from fastssl.data.webdataset import open_shards, some_samples
from fastssl.errors import UserError


def load_some(source: str, *, size: int, count: int, seed: int, progress: Progress | None = None) -> ImageSet:
    """``count`` images of ``source``, drawn by ``seed``, without labels; all, where there are no more.

    Of files only those that were drawn are read, and those among them that cannot be read are left out. Other
    arguments and errors are those of `fastssl.data.images.load`.
    """
    if shards.are_at(source):
        found = open_shards(source, size=size, progress=progress, instead=None).train
        return some_samples(found, count=count, seed=seed, instead=None).readable()
    with closing(list_files(source)) as listing:
        if not listing.entries:  # idx files, or nothing: then it says so
            everything = load_all(source, size=size, progress=progress)
            return replace(everything.subset(_drawn(len(everything), count, seed)), labels=None, classes=())
        chosen = [listing.entries[i] for i in _drawn(len(listing.entries), count, seed).tolist()]
        images, kept, skipped = decode_all(chosen, size, progress)
        skipped = listing.skipped + skipped
    if not kept:
        raise UserError(f"no readable image among {len(chosen)} of {source!r} ({quote(skipped)})")
    return ImageSet(images, None, (), tuple(chosen[i].name for i in kept), source, tuple(skipped))


def _drawn(of: int, count: int, seed: int) -> Tensor:
    """``count`` positions, sorted: compressed archives are read forwards."""
    return torch.randperm(of, generator=torch.Generator().manual_seed(seed))[:count].sort().values
