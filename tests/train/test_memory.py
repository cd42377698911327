from __future__ import annotations

import sys

import numpy as np
import pytest

from fastssl.train.memory import PeakMemory


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux keeps the mark")
def test_what_was_held_for_a_moment_is_counted_and_what_was_held_before_is_not() -> None:
    earlier = np.ones(30 << 20, np.uint8)
    peak = PeakMemory()
    before = peak.megabytes()
    moment = np.ones(40 << 20, np.uint8)
    del moment
    assert before < 10
    assert 36 < peak.megabytes() < 60
    assert PeakMemory().megabytes() < 10
    del earlier
