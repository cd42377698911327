"""A process of its own: what it answers and raises, and that it stands still, with what it started, between answers."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
from serving_apart import counts, doubles, ends

from fastssl.train.apart import Apart


def runs(pid: int) -> bool:
    """Whether a process is still there after some time for the system to clear it away."""
    for _ in range(100):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return False
        time.sleep(0.05)
    return True


def test_it_answers_and_raises() -> None:
    process = Apart(doubles, 7)
    assert process.answer() == 7
    assert process.ask(4) == 8
    with pytest.raises(ValueError, match="3 is odd"):
        process.ask(3)
    assert process.ask(6) == 12
    process.kill()


def test_it_stands_still_with_what_it_started_andends_with_it(tmp_path: Path) -> None:
    file = tmp_path / "written"
    process = Apart(counts, file)
    started = process.answer()
    assert process.ask(10) >= 10
    time.sleep(0.05)  # for the signal to arrive
    standing = file.stat().st_size
    time.sleep(0.2)
    assert file.stat().st_size == standing
    assert process.ask(10) >= standing + 10
    process.kill()
    assert not runs(started)


def test_it_goes_with_the_last_that_knows_it() -> None:
    process = Apart(doubles, 1)
    process.answer()
    inner = process._process
    del process
    assert inner.exitcode == -signal.SIGKILL


def test_one_thatends_is_noticed() -> None:
    process = Apart(ends)
    with pytest.raises(EOFError):
        process.answer()
    process.kill()
    with pytest.raises(EOFError):
        process.ask(1)
