"""The training loader: images in memory, in an order and with an augmentation that can be computed again."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from fastssl.data.imageset import ImageSet
from fastssl.data.plans import ViewPlan
from fastssl.data.rows import Decoded
from fastssl.data.threads import give_way, made_ahead
from fastssl.data.views import make_views
from fastssl.errors import UserError

# What a random stream is for; two streams never share a seed.
_ORDER, _AUGMENTATION = 0, 1
# Batches whose images are decoded before they are asked for.
_AHEAD = 2


class Batches(Protocol):
    """What an engine serves a training run with."""

    @property
    def steps_per_epoch(self) -> int: ...

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[list[Tensor]]:
        """The batches of ``epoch`` from ``start_step`` on, each a list of views (batch_size, 3, size, size)."""

    def close(self) -> None:
        """Lets go of threads and files."""


@dataclass(frozen=True)
class Schedule:
    """Which images make a batch, and what it draws from: by seed, epoch, step and rank alone, whichever the engine.

    Whole batches only: what is left of an epoch and fills none for every process is left out. The processes of a
    distributed run take turns at the batches of one order, so no two see the same image in an epoch, nor draw alike.

    Args:
        images: how many there are.
        batch_size: images a step and process.
        seed: 0 or more.
        rank: of this process among all, on all machines.
        world: how many processes there are.
        what: the images are, in the plural, where they are something else.

    Raises:
        UserError: if one of them is out of range.
    """

    images: int
    batch_size: int
    seed: int
    rank: int = 0
    world: int = 1
    what: str = "images"

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise UserError(f"the batch size must be at least 1; got {self.batch_size}")
        if not 0 <= self.rank < self.world:
            raise UserError(f"the rank must be in [0, {self.world}), the number of processes; got {self.rank}")
        if not self.images:
            raise UserError(f"the data set has no {self.what} at all: give a source that holds some")
        if self.batch_size * self.world > self.images:
            several = f" for each of {self.world} processes" if self.world > 1 else ""
            most = self.images // self.world
            smaller = f"--batch_size {most} or less, or " if most else ""
            raise UserError(
                f"a batch of {self.batch_size}{several} is larger than the data set of {self.images} {self.what} to "
                f"train on: give {smaller}more {self.what}"
            )
        if self.seed < 0:
            raise UserError(f"the seed must be 0 or more; got {self.seed}")

    @property
    def steps_per_epoch(self) -> int:
        return self.images // (self.batch_size * self.world)

    def chosen(self, epoch: int, start_step: int = 0) -> Iterator[tuple[int, Tensor]]:
        """The steps of ``epoch`` from ``start_step`` on, each with the positions of its images (batch_size,) int64."""
        order = torch.randperm(self.images, generator=self.order_generator(epoch))
        for step in range(start_step, self.steps_per_epoch):
            batch = self._batch(step)
            yield step, order[batch * self.batch_size : (batch + 1) * self.batch_size]

    def generator(self, epoch: int, step: int) -> torch.Generator:
        """The source of all randomness of a batch, on the CPU, so that the draws do not depend on the device."""
        return _generator(_AUGMENTATION, self.seed, epoch, self._batch(step))

    def order_generator(self, epoch: int) -> torch.Generator:
        """The source of the order of an epoch, the same for all processes."""
        return _generator(_ORDER, self.seed, epoch)

    def _batch(self, step: int) -> int:
        """Among those of all processes."""
        return step * self.world + self.rank


class Loader:
    """Batches of views of a data set, whole batches only, reshuffled every epoch.

    The order is a function of (seed, epoch) and the augmentation of (seed, epoch, step and rank) alone, so that a run
    resumed in mid-epoch sees what an uninterrupted one sees. The views are made when they are asked for, by all threads
    that torch uses; nothing is made ahead, for which there would be no thread to spare. A GPU gets all images once.

    Images that are decoded when they are first asked for (`fastssl.data.images.load_lazily`) are so for two batches
    ahead, on threads that give way to those of the training step; a GPU gets all of them once an epoch is done. Which
    are decoded already changes nothing but the time. The place of one that cannot be read is taken by the next readable
    one of its batch.

    Args:
        data: the images; labels are never used.
        plan: how views are made of each image.
        batch_size: images a step and process; what is left of an epoch and fills no batch is left out.
        seed: 0 or more.
        device: where the views are made.
        rank: of this process among all, on all machines.
        world: how many processes train together; each sees images of its own.
        dtype, channels_last: of the views, see `fastssl.data.views.make_views`.

    Raises:
        UserError: if a number is out of range.
    """

    def __init__(
        self,
        data: ImageSet,
        plan: ViewPlan,
        batch_size: int,
        seed: int,
        device: torch.device | str = "cpu",
        *,
        rank: int = 0,
        world: int = 1,
        dtype: torch.dtype = torch.float32,
        channels_last: bool = False,
    ) -> None:
        self.schedule = Schedule(len(data), batch_size, seed, rank, world)
        self.device = torch.device(device)
        self._lazy = data.images if isinstance(data.images, Decoded) else None
        self.images = data.images
        self.plan, self.dtype, self.channels_last = plan, dtype, channels_last
        if self._lazy is None:
            self._move()

    @property
    def steps_per_epoch(self) -> int:
        return self.schedule.steps_per_epoch

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[list[Tensor]]:
        """The batches of ``epoch`` from ``start_step`` on, each ``plan.total`` tensors (batch_size, 3, size, size).

        Raises:
            UserError: if images are decoded as they are asked for, and more cannot be than are allowed.
        """
        for step, chosen in self._decoded(self.schedule.chosen(epoch, start_step)):
            images = self.images
            batch = images[chosen.to(images.device)] if isinstance(images, Tensor) else images[chosen].to(self.device)
            generator = self.schedule.generator(epoch, step)
            yield make_views(batch, self.plan, generator, dtype=self.dtype, channels_last=self.channels_last)
        self._move()

    def close(self) -> None:
        """Nothing to let go of: the threads of an epoch end with it."""

    def _decoded(self, steps: Iterator[tuple[int, Tensor]]) -> Iterator[tuple[int, Tensor]]:
        """The steps, each once its images are decoded, with those that can be read."""
        if self._lazy is None:
            yield from steps
            return
        usable = self._lazy.usable
        pool = ThreadPoolExecutor(_AHEAD, "fill", give_way)
        try:
            yield from made_ahead(pool, _AHEAD, lambda step, chosen: (step, usable(chosen)), steps)
        finally:
            pool.shutdown(cancel_futures=True)

    def _move(self) -> None:
        """All images to the GPU, if the views are made there."""
        if self.device.type != "cpu" and not (isinstance(self.images, Tensor) and self.images.is_cuda):
            self.images = self.images[:].to(self.device)


def _generator(*key: int) -> torch.Generator:
    """A CPU generator that depends on ``key`` alone."""
    (state,) = np.random.SeedSequence(key).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state))
