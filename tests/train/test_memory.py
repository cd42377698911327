from __future__ import annotations

import subprocess
import sys

import pytest

# in a process of its own: one that has lived has memory to give again, which raises no mark
MEASURE = """
import numpy as np
from fastssl.train.memory import PeakMemory
earlier = np.ones(30 << 20, np.uint8)
peak = PeakMemory()
before = peak.megabytes()
moment = np.ones(40 << 20, np.uint8)
del moment
print(before, peak.megabytes(), PeakMemory().megabytes())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux keeps the mark")
def test_what_was_held_for_a_moment_is_counted_and_what_was_held_before_is_not() -> None:
    done = subprocess.run([sys.executable, "-c", MEASURE], capture_output=True, text=True, check=True)
    before, with_moment, after = map(float, done.stdout.split())
    assert before < 10
    assert 36 < with_moment < 60
    assert after < 10
