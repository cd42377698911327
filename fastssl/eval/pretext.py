"""The pretext task itself: how well a method does it on images that it was not trained on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from fastssl.data.imageset import ImageSet
from fastssl.data.plans import ViewPlan
from fastssl.data.views import make_views
from fastssl.eval.features import BATCH_SIZE, evaluating
from fastssl.methods import Method


@dataclass(frozen=True)
class Pretext:
    """How well the pretext task is done.

    Attributes:
        loss: mean of the method's own.
        accuracy: share that was solved, in [0, 1]; None of a task that is not one of classes.
        chance: what guessing would give; likewise.
        error: of a task whose answers are numbers, as the method notes it; else None.
        constant: that error of a constant answer, the best guess of who has seen nothing; likewise.
        images: how many it was done on.
        constant_loss: the least loss of one answer for all, where the method notes it.
    """

    loss: float
    accuracy: float | None
    chance: float | None
    error: float | None
    constant: float | None
    images: int
    constant_loss: float | None = None

    def in_words(self) -> str:
        """What was reached, beside what costs nothing."""
        told = f"loss {self.loss:.3f}"
        if self.constant_loss is not None:
            told += f" (of a constant answer {self.constant_loss:.3f})"
        if self.accuracy is not None and self.chance is not None:
            told += f", {self.accuracy:.1%} solved (chance {self.chance:.1%})"
        if self.error is not None and self.constant is not None:
            told += f", error {self.error:.3g} (of a constant answer {self.constant:.3g})"
        return told


def pretext_score(
    method: Method,
    images: ImageSet,
    plan: ViewPlan,
    *,
    batch_size: int = BATCH_SIZE,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> Pretext:
    """Loss, accuracy or error of ``method`` on views of ``images``, in evaluation mode.

    Args:
        method: on ``device``; all its parts are in their own mode again afterwards.
        images: to be held out from training. The last batch may be smaller, and counts by its size.
        plan: how views are made, as in training.
        batch_size: images a forward pass. A contrastive loss depends on it.
        seed: of the views and of what the method draws; torch's generators are left as they were.
    """
    generator = torch.Generator().manual_seed(seed)
    sums: dict[str, float] = {}
    devices = [] if torch.device(device).type == "cpu" else [device]
    with torch.random.fork_rng(devices=devices), torch.no_grad(), evaluating(method):
        torch.manual_seed(seed)
        for start, count in _batches(len(images), batch_size):
            views = make_views(images.images[start : start + count].to(device), plan, generator)
            loss = float(method(views))
            for name, value in {"loss": loss, **method.metrics(loss, count)}.items():
                sums[name] = sums.get(name, 0.0) + count * value
    means = {name: total / len(images) for name, total in sums.items()}
    return Pretext(
        loss=means["loss"],
        accuracy=means.get("pretext_accuracy"),
        chance=means.get("chance"),
        error=means.get("pretext_error"),
        constant=means.get("constant_error"),
        images=len(images),
        constant_loss=means.get("constant_loss"),
    )


def _batches(count: int, size: int) -> Iterator[tuple[int, int]]:
    """Begin and length of each; a rest of one, which no contrast could be made of, joins the batch before."""
    starts = list(range(0, count, size))
    if len(starts) > 1 and count - starts[-1] == 1:
        starts.pop()
    for start, end in zip(starts, [*starts[1:], count], strict=True):
        yield start, end - start
