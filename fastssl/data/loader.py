"""The training loader: images in memory, in an order and with an augmentation that can be computed again."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from fastssl.data.images import ImageSet
from fastssl.data.plans import ViewPlan
from fastssl.data.views import make_views
from fastssl.errors import UserError

# What a random stream is for; two streams never share a seed.
_ORDER, _AUGMENTATION = 0, 1


class Loader:
    """Batches of views of a data set, whole batches only, reshuffled every epoch.

    The order is a function of (seed, epoch) and the augmentation of (seed, epoch, step) alone, so that a run resumed
    in mid-epoch sees what an uninterrupted one sees. All images are moved to ``device`` once.

    Args:
        data: the images; labels are never used.
        plan: how views are made of each image.
        batch_size: images a step, from 1 to ``len(data)``; what is left of an epoch and fills no batch is left out.
        seed: 0 or more.
        device: where the views are made.

    Raises:
        UserError: if the batch size or the seed is out of range.
    """

    steps_per_epoch: int

    def __init__(
        self, data: ImageSet, plan: ViewPlan, batch_size: int, seed: int, device: torch.device | str = "cpu"
    ) -> None:
        if batch_size < 1:
            raise UserError(f"the batch size must be at least 1; got {batch_size}")
        if batch_size > len(data):
            raise UserError(
                f"a batch of {batch_size} is larger than the data set of {len(data)} images to train on: "
                f"give --batch_size {len(data)} or less, or more images"
            )
        if seed < 0:
            raise UserError(f"the seed must be 0 or more; got {seed}")
        self.images = data.images.to(device)
        self.plan = plan
        self.batch_size = batch_size
        self.seed = seed
        self.steps_per_epoch = len(data) // batch_size

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[list[Tensor]]:
        """The batches of ``epoch`` from ``start_step`` on, each ``plan.total`` tensors (batch_size, 3, size, size)."""
        order = torch.randperm(len(self.images), generator=_generator(_ORDER, self.seed, epoch))
        for step in range(start_step, self.steps_per_epoch):
            chosen = order[step * self.batch_size : (step + 1) * self.batch_size].to(self.images.device)
            generator = _generator(_AUGMENTATION, self.seed, epoch, step)
            yield make_views(self.images[chosen], self.plan, generator)


def _generator(*key: int) -> torch.Generator:
    """A CPU generator that depends on ``key`` alone; the parameters drawn do not depend on the device of the images."""
    (state,) = np.random.SeedSequence(key).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state))
