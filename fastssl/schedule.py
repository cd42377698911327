"""Learning rates as plain functions of the step."""

from __future__ import annotations

import math


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
