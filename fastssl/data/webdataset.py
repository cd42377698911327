"""WebDataset shards: data sets that outgrow a machine's memory, as tar files whose samples lie one after another.

The names inside a shard and the files are the ``webdataset`` package's, whose own pipelines read them too. What that
package leaves to chance is settled here: which process and step a sample falls to, so that a run can be resumed.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import overload

import numpy as np
import torch
from torch import Tensor
from typing_extensions import Unpack

from fastssl.data.ahead import Settings
from fastssl.data.decode import UnreadableError
from fastssl.data.files import ANOTHER, MAX_SKIPPED, Files
from fastssl.data.imageset import ImageSet, Splits
from fastssl.data.loader import Schedule
from fastssl.data.plans import ViewPlan
from fastssl.data.reading import Progress
from fastssl.data.rows import Undecoded
from fastssl.data.shards import Member, Shards, list_shards, pack, scan, write_index
from fastssl.data.sources import MAX_FILE_BYTES, Entry, Listing, one_line
from fastssl.data.stream import StreamLoader
from fastssl.errors import UserError

__all__ = [
    "InShards",
    "ShardLoader",
    "ShardSchedule",
    "Shards",
    "list_shards",
    "open_shards",
    "pack",
    "some_samples",
    "write_index",
]

# Shards whose tables of contents are kept.
_TABLES = 64


@dataclass(frozen=True)
class ShardSchedule(Schedule):
    """Which samples make a batch, by seed, epoch, step and rank alone, read nearly in the order of their shards.

    In each epoch the shards are put into an order, and all their samples, one shard after the other, are dealt to the
    processes in equal parts: a shard belongs to one process, but for those at the ends of its part, which it shares
    with a neighbour. A process reads several shards at a time, in turns, and moves each sample by up to ``window``
    places. So batches mix what lies together, and yet each shard is read from front to back.

    Args:
        counts: samples of each shard.
        readers: shards that are read at a time.
        window: the most places that a sample is moved by; 1 for none.
    """

    counts: tuple[int, ...] = ()
    readers: int = 1
    window: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("readers", "window"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be at least 1; got {getattr(self, name)}")

    def chosen(self, epoch: int, start_step: int = 0) -> Iterator[tuple[int, Tensor]]:
        """The steps of ``epoch`` from ``start_step`` on, each with the positions of its samples (batch_size,) int64.

        A position counts the samples of all shards, in the order in which the shards were given.
        """
        generator = self.order_generator(epoch)
        counts = torch.tensor(self.counts)
        shards = torch.randperm(len(counts), generator=generator)
        ends = counts[shards].cumsum(0)  # in the order of the epoch
        move = (counts.cumsum(0) - counts)[shards] - (ends - counts[shards])  # from there to the order given
        own = self.images // self.world
        places = torch.arange(own)
        reader = places * self.readers // own
        first = (reader * own + self.readers - 1) // self.readers  # of the reader's
        places = ((places - first) * self.readers + reader).argsort()
        late = torch.rand(own, generator=generator, dtype=torch.float64) * self.window
        places = self.rank * own + places[(torch.arange(own) + late).argsort()]
        for step in range(start_step, self.steps_per_epoch):
            batch = places[step * self.batch_size : (step + 1) * self.batch_size]
            yield step, batch + move[torch.searchsorted(ends, batch, right=True)]


class ShardLoader(StreamLoader):
    """Batches of views from WebDataset shards, made as `fastssl.data.stream.StreamLoader` makes them of files.

    Which samples make a batch and what is drawn for them depends on (seed, epoch, step, rank and world) alone: a run
    resumed in mid-epoch sees what an uninterrupted one sees, to the bit, and no sample before is read for it. Any
    number of threads gives the same. Every process has the same number of steps, and no two see the same sample in an
    epoch. Samples without an image are passed over.

    Args:
        shards: as ``list_shards`` gives them; all processes must be given the same.
        plan: how views are made of each image.
        batch_size: images a step and process; what is left of an epoch and fills no batch is left out.
        seed: 0 or more.
        readers: shards that are read at a time.
        window: the most samples that one is moved by while they are shuffled: what is read in a while should fit into
            the memory that the system keeps files in.
        files: what keeps account of the samples, as ``open_shards`` makes it; by default one of its own.
        dtype, channels_last: of the views, see `fastssl.data.views.make_views`.
        settings: see `fastssl.data.ahead.Settings`.

    Raises:
        UserError: if a number is out of range.
    """

    def __init__(
        self,
        shards: Shards,
        plan: ViewPlan,
        batch_size: int,
        seed: int,
        *,
        readers: int = 4,
        window: int = 5000,
        files: Files | None = None,
        dtype: torch.dtype = torch.float32,
        channels_last: bool = False,
        **settings: Unpack[Settings],
    ) -> None:
        self._in_turns = partial(ShardSchedule, counts=shards.counts, readers=readers, window=window)
        own = files or _listing(shards)
        super().__init__(own, plan, batch_size, seed, dtype=dtype, channels_last=channels_last, **settings)

    def order(self, count: int, batch_size: int, seed: int, rank: int, world: int) -> Schedule:
        return self._in_turns(count, batch_size, seed, rank, world)


class InShards(Undecoded):
    """Samples of shards as images that are decoded each time that they are asked for.

    There may be millions, so that none is tried, or left out, before it is trained on.

    Args:
        shards: as ``list_shards`` gives them.
        files: what keeps account of the samples.
        size: side of the images.
    """

    def __init__(self, shards: Shards, files: Files, size: int) -> None:
        super().__init__(files, torch.arange(len(shards)), size)
        self.shards = shards

    def identity(self) -> bytes:
        """By the shards' names, their samples, and which of them these are; no shard is read for it."""
        named = [(path.name, count) for path, count in zip(self.shards.paths, self.shards.counts, strict=True)]
        return repr(named).encode() + self.rows.numpy().tobytes()

    def readable(self, progress: Progress | None = None) -> Tensor:
        """All positions: which samples cannot be read is found out as they are trained on."""
        return torch.arange(len(self.rows))


def open_shards(
    source: str,
    *,
    size: int,
    max_skipped: float = MAX_SKIPPED,
    progress: Progress | None = None,
    instead: str | None = ANOTHER,
) -> Splits:
    """The images in shards, to train on, without labels; `fastssl.data.engines.open_loader` makes a `ShardLoader`.

    Args:
        source: as of ``list_shards``; so are the other arguments and errors.
        size: side of the images where they are looked at: the short side is resized and the centre cut out.
        max_skipped: the share of shards, and likewise that of samples, above which unreadable ones are an error.
        instead: what becomes of an unreadable sample's place, for the warning that names it; None for no warning.
    """
    shards = list_shards(source, max_skipped=max_skipped, progress=progress)
    files = Files(_listing(shards), max_skipped, instead)
    names = _Names(files.listing.entries)
    return Splits(ImageSet(InShards(shards, files, size), None, (), names, source, files.listing.skipped), None)


def some_samples(data: ImageSet, *, count: int, seed: int, instead: str | None) -> ImageSet:
    """``count`` images of shards, drawn by ``seed``: to look at. All, where there are no more.

    ``instead`` is what becomes of the place of an unreadable one, as of ``open_shards``.
    """
    assert isinstance(data.images, InShards)
    chosen = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed))[:count].sort().values
    images = Undecoded(data.images.files.met(instead), data.images.rows[chosen], data.images.shape[-1])
    return replace(data.subset(chosen), images=images)


class _Names(Sequence[str]):
    """The names of entries, each looked up when it is asked for."""

    def __init__(self, entries: Sequence[Entry]) -> None:
        self._entries = entries

    def __len__(self) -> int:
        return len(self._entries)

    @overload
    def __getitem__(self, position: int) -> str: ...

    @overload
    def __getitem__(self, position: slice) -> Sequence[str]: ...

    def __getitem__(self, position: int | slice) -> str | Sequence[str]:
        if isinstance(position, slice):
            return [self[i] for i in range(*position.indices(len(self)))]
        return self._entries[position].name


def _listing(shards: Shards) -> Listing:
    return Listing(_Samples(shards), list(shards.skipped))


class _Samples(Sequence[Entry]):
    """The images of shards as files, counted through all of them. Each is made when it is asked for."""

    def __init__(self, shards: Shards) -> None:
        self._shards = shards
        self._ends = np.cumsum(shards.counts)
        self._scanning = threading.Lock()
        self._scanned = lru_cache(_TABLES)(scan)

    def __len__(self) -> int:
        return len(self._shards)

    @overload
    def __getitem__(self, position: int) -> Entry: ...

    @overload
    def __getitem__(self, position: slice) -> Sequence[Entry]: ...

    def __getitem__(self, position: int | slice) -> Entry | Sequence[Entry]:
        if isinstance(position, slice):
            return [self[i] for i in range(*position.indices(len(self)))]
        shard = int(np.searchsorted(self._ends, position, side="right"))
        path, sample = self._shards.paths[shard], position - int(self._ends[shard]) + self._shards.counts[shard]
        with self._scanning:  # else each thread would read the table of a new shard
            members, problem = self._scanned(path)
        if sample < len(members):
            return Entry(
                f"{path.name}/{members[sample].name}", partial(_read, path, members[sample]), members[sample].size
            )
        return Entry(
            f"{path.name}/sample {sample}", partial(_missing, problem or f"the shard has {len(members)} samples")
        )


def _read(path: Path, member: Member) -> bytes:
    if member.size > MAX_FILE_BYTES:
        raise UnreadableError(f"{member.size} bytes are more than the {MAX_FILE_BYTES} allowed")
    try:
        with path.open("rb") as file:
            file.seek(member.offset)
            return file.read(member.size)
    except OSError as error:
        raise UnreadableError(one_line(error)) from error


def _missing(reason: str) -> bytes:
    raise UnreadableError(f"missing, though counted before: {reason}")
