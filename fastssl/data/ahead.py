"""Batches that are read and made on threads while the steps before are computed, whatever they are made of."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import TypedDict, TypeVar

import numpy as np
import torch
from torch import Tensor

from fastssl.data.files import ANOTHER, MAX_SKIPPED, Files
from fastssl.data.loader import Schedule
from fastssl.data.sources import Listing, Skipped
from fastssl.data.threads import give_way, made_ahead
from fastssl.errors import UserError

L = TypeVar("L", bound="AheadLoader")


class Settings(TypedDict, total=False):
    """What every loader takes that makes batches on threads, by name; the defaults are `AheadLoader`'s.

    Attributes:
        device: where the batches go, which are made on the CPU.
        rank: of this process among all, on all machines.
        world: how many processes train together; each sees items of its own.
        threads: that make batches; by default as many as torch uses.
        ahead: batches in the making, or made, while one is trained on; 1 or more. Memory holds ``ahead`` + 1 of them,
            the files of ``ahead``, and what the threads are at.
        max_skipped: the share of all items, in [0, 1], above which unreadable ones end the epoch with an error; one is
            always allowed. Files of a set of images are counted with all that the set was read from, as that has it.
    """

    device: torch.device | str
    rank: int
    world: int
    threads: int | None
    ahead: int
    max_skipped: float


class AheadLoader(ABC):
    """What engines share that make batches on threads; the contract is `fastssl.data.loader.Batches`.

    ``ahead`` batches are in the making, or made, while one is trained on. On Linux the threads that make them give way
    to those of the training step: they take what processors it leaves idle, and all of them while it waits.

    Args:
        files: what the batches are made of, or what keeps account of those; closed with the loader.
        batch_size: of them, a step and process; what is left of an epoch and fills no batch is left out.
        seed: 0 or more.
        device, rank, world, threads, ahead, max_skipped: see `Settings`.

    Raises:
        UserError: if a number is out of range.
    """

    # the plural of what batches are made of
    what = "images"

    def __init__(
        self,
        files: Listing | Files,
        batch_size: int,
        seed: int,
        *,
        device: torch.device | str = "cpu",
        rank: int = 0,
        world: int = 1,
        threads: int | None = None,
        ahead: int = 2,
        max_skipped: float = MAX_SKIPPED,
    ) -> None:
        self._threads = torch.get_num_threads() if threads is None else threads
        for name, value in (("threads", self._threads), ("ahead", ahead)):
            if value < 1:
                raise UserError(f"{name} must be 1 or more; got {value}")
        self._files = files if isinstance(files, Files) else Files(files, max_skipped, ANOTHER)
        self.schedule = self.order(len(self._files.listing.entries), batch_size, seed, rank, world)
        self.device, self._ahead = torch.device(device), ahead
        self._pools: set[ThreadPoolExecutor] = set()

    def order(self, count: int, batch_size: int, seed: int, rank: int, world: int) -> Schedule:
        """Which of ``count`` items make a batch."""
        return Schedule(count, batch_size, seed, rank, world, self.what)

    @abstractmethod
    def make(self, workers: ThreadPoolExecutor, epoch: int, step: int, chosen: list[int]) -> list[Tensor]:
        """The batch of the files at ``chosen``: by the arguments and by which files are readable, alone.

        Called on a thread of its own, for several batches at once; ``workers`` are for all of them.
        """

    @property
    def steps_per_epoch(self) -> int:
        return self.schedule.steps_per_epoch

    @property
    def skipped(self) -> tuple[Skipped, ...]:
        """The files met so far that cannot be read, and why."""
        return self._files.skipped

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[list[Tensor]]:
        """The batches of ``epoch`` from ``start_step`` on, each as ``make`` gives it, on ``device``.

        Raises:
            UserError: if more files cannot be read than are allowed, or a whole batch of them.
        """
        # each batch waits for the threads that work on all of them
        batches = ThreadPoolExecutor(self._ahead, "batch")
        workers = ThreadPoolExecutor(self._threads, "make", give_way)
        self._pools |= {workers, batches}

        def make(step: int, chosen: Tensor) -> list[Tensor]:
            return self.make(workers, epoch, step, chosen.tolist())

        try:
            for views in made_ahead(batches, self._ahead, make, self.schedule.chosen(epoch, start_step)):
                yield [view.to(self.device) for view in views]
        finally:
            self._end(workers, batches)

    def close(self) -> None:
        """Ends all threads and closes the files."""
        self._end(*self._pools)
        self._files.listing.close()

    def __enter__(self: L) -> L:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _end(self, *pools: ThreadPoolExecutor) -> None:
        """What is not begun yet never is, and batches that wait for it end by an error that nobody sees."""
        for pool in pools:
            pool.shutdown(wait=False, cancel_futures=True)
        for pool in pools:
            pool.shutdown()
        self._pools -= set(pools)


def room(*shape: int, dtype: torch.dtype = torch.float32, channels_last: bool = False) -> Tensor:
    """New memory of that shape, whatever it holds; with ``channels_last`` (N, C, H, W) is laid out as (N, H, W, C).

    By NumPy, which asks for huge pages: without them first writes to new memory take longer than the copying.
    """
    count, *sides = shape
    order = (count, *sides[1:], sides[0]) if channels_last else shape
    made = torch.from_numpy(np.empty(math.prod(shape) * dtype.itemsize, np.uint8)).view(dtype).view(order)
    return made.movedim(-1, 1) if channels_last else made
