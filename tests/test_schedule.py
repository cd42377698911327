from __future__ import annotations

from itertools import pairwise

import pytest

from fastssl.schedule import cosine_with_warmup


def rates(total: int, warmup: int, base: float = 2.0, final: float = 0.5) -> list[float]:
    return [cosine_with_warmup(s, total=total, warmup=warmup, base=base, final=final) for s in range(total + 1)]


def test_ends_and_middle():
    lr = rates(total=110, warmup=10)
    assert lr[0] == pytest.approx(2.0 / 11)
    assert lr[10] == 2.0
    assert lr[60] == pytest.approx((2.0 + 0.5) / 2)
    assert lr[110] == pytest.approx(0.5)


def test_rises_evenly_then_falls():
    lr = rates(total=110, warmup=10)
    steps = [b - a for a, b in pairwise(lr[:11])]
    assert steps == pytest.approx([2.0 / 11] * 10)
    assert all(b < a for a, b in pairwise(lr[10:]))


def test_falls_like_a_cosine():
    lr = rates(total=90, warmup=0, base=1.0, final=0.0)
    assert lr[30] == pytest.approx(0.75)  # (1 + cos 60 degrees) / 2
    assert lr[60] == pytest.approx(0.25)


def test_without_warmup_starts_at_base():
    assert rates(total=5, warmup=0)[0] == 2.0


def test_all_warmup_only_rises_until_training_ends():
    lr = rates(total=4, warmup=4)
    assert lr == pytest.approx([0.4, 0.8, 1.2, 1.6, 0.5])


def test_a_single_step_trains():
    assert rates(total=1, warmup=0) == pytest.approx([2.0, 0.5])


@pytest.mark.parametrize(("step", "total", "warmup"), [(-1, 5, 0), (6, 5, 0), (0, 0, 0), (0, 5, 6), (0, 5, -1)])
def test_refuses_steps_out_of_bounds(step, total, warmup):
    with pytest.raises(ValueError, match=f"got total={total}, warmup={warmup}, step={step}"):
        cosine_with_warmup(step, total=total, warmup=warmup, base=1.0)
