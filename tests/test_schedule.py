from __future__ import annotations

import math
from itertools import pairwise

import pytest

from fastssl.errors import UserError
from fastssl.schedule import Schedule, cosine_with_warmup


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


def values(schedule: Schedule, total: int = 12, per_epoch: int = 3) -> list[float]:
    return [schedule.at(step, total=total, per_epoch=per_epoch) for step in range(total)]


def test_half_a_cosine_over_the_run():
    """BYOL, arXiv:2006.07733, section 3.2: 1 - (1 - start) (cos(pi k / K) + 1) / 2."""
    expected = [1 - (1 - 0.99) * (math.cos(math.pi * k / 12) + 1) / 2 for k in range(12)]
    assert values(Schedule(0.99, 1.0)) == pytest.approx(expected, rel=1e-12)


def test_what_has_no_end_stays():
    assert values(Schedule(0.3)) == [0.3] * 12


def test_arrives_after_its_epochs_and_stays_there():
    assert values(Schedule(1.0, 4.0, epochs=2, shape="linear")) == [1.0, 1.5, 2.0, 2.5, 3.0, 3.5] + [4.0] * 6
    assert values(Schedule(0.0, 1.0, epochs=2, shape="step")) == [0.0] * 6 + [1.0] * 6
    assert values(Schedule(0.0, 1.0, epochs=0)) == [1.0] * 12


def test_a_run_may_end_before_its_epochs():
    assert values(Schedule(0.0, 1.0, epochs=8, shape="linear"))[-1] == pytest.approx(11 / 24)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"start": math.nan}, "start of a schedule must be a finite number; got nan"),
        ({"start": 0.0, "end": math.inf}, "end of a schedule must be a finite number; got inf"),
        ({"start": 0.0, "epochs": -1}, "epochs of a schedule must be 0 or more; got -1"),
        ({"start": 0.0, "shape": "cosin"}, "unknown shape of a schedule 'cosin': did you mean 'cosine'"),
    ],
)
def test_refuses_a_schedule_that_cannot_be(settings, message):
    with pytest.raises(UserError, match=message):
        Schedule(**settings)


def test_bounds_are_of_both_ends():
    Schedule(0.0, 1.0).require("momentum of BYOL", 0, 1)
    with pytest.raises(UserError, match=r"the momentum of BYOL must be from 0 to 1; got 1\.5"):
        Schedule(0.9, 1.5).require("momentum of BYOL", 0, 1)
    with pytest.raises(UserError, match="the momentum of BYOL must be from 0 to 1; got -1"):
        Schedule(-1.0, 1.0).require("momentum of BYOL", 0, 1)
    with pytest.raises(UserError, match=r"the temperature must be 0\.001 or more; got 0"):
        Schedule(0.0).require("temperature", 1e-3)
