"""How much of what a new process frees stays with it: a script calls ``used()`` and asks ``resident()``."""

from __future__ import annotations

import subprocess
import sys

BEGINNING = """
import numpy

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096

def used():
    block = numpy.ones(2**27, dtype=numpy.uint8)
    assert block[-1] == 1
"""


def run(script: str) -> subprocess.CompletedProcess[str]:
    """``script``, after the two functions; ``used()`` takes 128 MB and frees them."""
    return subprocess.run([sys.executable, "-c", BEGINNING + script], capture_output=True, text=True, check=False)
