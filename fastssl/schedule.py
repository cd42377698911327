"""What changes while training, as plain functions of the step: a resumed run goes on with the same numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from fastssl.errors import UserError, unknown

Shape = Literal["cosine", "linear", "step"]


def cosine_with_warmup(step: int, *, total: int, warmup: int, base: float, final: float = 0.0) -> float:
    """Linear warm-up, then half a cosine (SGDR without restarts, arXiv:1608.03983, eq. 5).

    The rate rises in equal steps from ``base / (warmup + 1)`` at step 0 to ``base`` at step ``warmup``, and falls from
    there to ``final`` at step ``total``, which is the first step after training.

    Args:
        step: 0 <= step <= total.
        total: steps of the whole training, warm-up included, >= 1.
        warmup: steps below ``base``, 0 <= warmup <= total.
        base: the highest rate.
        final: the last rate.
    Raises:
        ValueError: naming the numbers, if they lie outside these bounds.
    """
    if total < 1 or not 0 <= warmup <= total or not 0 <= step <= total:
        raise ValueError(
            f"a schedule needs total >= 1, 0 <= warmup <= total and 0 <= step <= total; "
            f"got total={total}, warmup={warmup}, step={step}"
        )
    if step < warmup:
        return base * (step + 1) / (warmup + 1)
    progress = (step - warmup) / (total - warmup) if total > warmup else 1.0
    return final + (base - final) * 0.5 * (1.0 + math.cos(math.pi * progress))


@dataclass(frozen=True)
class Schedule:
    """A number that goes from one value to another while training.

    Attributes:
        start: the value at the first step.
        end: the value at the end, and from the end of ``epochs`` on; null is ``start``, which then never changes.
        epochs: passes over the images from ``start`` to ``end``; null is the whole run.
        shape: "cosine" is half a cosine, slow at both ends; "linear"; "step" keeps ``start`` for all of ``epochs``.
    """

    start: float
    end: float | None = None
    epochs: int | None = None
    shape: Shape = "cosine"

    def __post_init__(self) -> None:
        for name in ("start", "end"):
            value = getattr(self, name)
            if value is not None and not math.isfinite(value):
                raise UserError(f"the {name} of a schedule must be a finite number; got {value}")
        if self.epochs is not None and self.epochs < 0:
            raise UserError(f"the epochs of a schedule must be 0 or more; got {self.epochs}")
        if self.shape not in list(get_args(Shape)):  # a list: what YAML gives may have no hash
            raise unknown("shape of a schedule", self.shape, get_args(Shape))

    @property
    def last(self) -> float:
        """The value that it arrives at."""
        return self.start if self.end is None else self.end

    def at(self, step: int, *, total: int, per_epoch: int) -> float:
        """The value at ``step``, from 0, of ``total`` steps, ``per_epoch`` of them an epoch."""
        length = total if self.epochs is None else self.epochs * per_epoch
        if step >= length:
            return self.last
        if self.shape == "step":
            return self.start
        if self.shape == "linear":
            return self.start + (self.last - self.start) * step / length
        return cosine_with_warmup(step, total=length, warmup=0, base=self.start, final=self.last)

    def require(self, what: str, least: float, most: float = math.inf) -> None:
        """Refuses a schedule that leaves [least, most].

        Raises:
            UserError: naming ``what`` it is of, and the value.
        """
        for value in (self.start, self.last):
            if not least <= value <= most:
                bounds = f"{least:g} or more" if most == math.inf else f"from {least:g} to {most:g}"
                raise UserError(f"the {what} must be {bounds}; got {value}")
