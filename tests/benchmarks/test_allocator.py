"""Freed memory stays with the process while something is timed, and goes back when it is asked to."""

import pytest
import resident

SCRIPT = """
from benchmarks import allocator

try:
    allocator.keep_freed_memory()
except RuntimeError as reason:
    assert "glibc" in str(reason)
    raise SystemExit(77)
before = resident()
used()
kept = resident() - before
allocator.return_freed_memory()
print(kept // 2**20, (resident() - before) // 2**20)
"""


def test_freed_memory_is_kept_and_returned() -> None:
    done = resident.run(SCRIPT)
    if done.returncode == 77:
        pytest.skip("not glibc")
    assert done.returncode == 0, done.stderr
    kept, left = map(int, done.stdout.split())
    assert kept >= 100
    assert left <= 28
