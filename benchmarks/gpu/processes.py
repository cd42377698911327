"""Processes that may die or outlast their time, and what is kept of them."""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent.parent
LINES = 200  # kept of what a process said last
GRACE = 5.0  # seconds between the request to end and the end
Result = dict[str, Any]  # of a part of a stage
Tell = Callable[[str, Result], None]  # to be called with a part and its result


_running: set[subprocess.Popen[bytes]] = set()


def start(command: Sequence[object], **environment: str) -> subprocess.Popen[bytes]:
    """In the repository's root, with a process group of its own, so that its children end with it."""
    process = subprocess.Popen(
        [*map(str, command)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    _running.add(process)
    return process


def end_with_this_one() -> None:
    """From now on, when this process is asked to end, so are those that it started."""

    def all_end(number: int, _: object) -> None:
        for process in list(_running):
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        raise SystemExit(128 + number)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, all_end)


def end(process: subprocess.Popen[bytes]) -> None:
    """Ends a process of ``start`` and its children."""
    _running.discard(process)
    for how, seconds in ((signal.SIGINT, GRACE), (signal.SIGKILL, None)):
        if process.poll() is not None:
            return
        with suppress(subprocess.TimeoutExpired, ProcessLookupError):
            os.killpg(process.pid, how)
            process.wait(seconds)


def lines(process: subprocess.Popen[bytes], deadline: float) -> Iterator[str]:
    """What a process prints, until it ends by itself or is ended: at the deadline, or where the reader stops."""
    assert process.stdout is not None
    os.set_blocking(process.stdout.fileno(), False)
    try:
        with selectors.DefaultSelector() as ready:
            ready.register(process.stdout, selectors.EVENT_READ)
            unfinished = ""
            while (left := deadline - time.monotonic()) > 0:
                if not ready.select(min(left, 1.0)):
                    continue
                read = os.read(process.stdout.fileno(), 2**16).decode(errors="replace")
                if not read:
                    with suppress(subprocess.TimeoutExpired):
                        process.wait(GRACE)
                    break
                *whole, unfinished = (unfinished + read).split("\n")
                yield from whole
            if unfinished:
                yield unfinished
    finally:
        end(process)
        process.stdout.close()


def run(command: Sequence[object], seconds: float, **environment: str) -> tuple[int | None, str]:
    """The exit code, or None if its time was over, and the last lines that it printed."""
    process = start(command, **environment)
    deadline = time.monotonic() + seconds
    said = deque(lines(process, deadline), maxlen=LINES)
    return (None if time.monotonic() >= deadline else process.wait()), "\n".join(said)


def each(
    command: Sequence[object],
    items: Sequence[str],
    seconds: float,
    tell: Callable[[str, Any, str], None],
    ended: Callable[[list[str], int, str], None] = lambda done, code, said: None,
    **environment: str,
) -> list[str]:
    """Runs ``command ITEM...``, which prints {"item": ..., "result": ...} in a line when it is done with an item.

    An item in which the process dies has {"failed": why} as its result, and the rest go on in a new process, unless
    two in a row got nothing done.

    Args:
        tell: called at once with each item, its result, and what else was printed meanwhile.
        ended: called when a process ends by itself, with the items that it told, its exit code, and what it printed
            after the last of them.
    Returns:
        the items that were not reached in time.
    """
    deadline = time.monotonic() + seconds
    rest, barren = list(items), 0
    while rest and time.monotonic() < deadline:
        barren += 1
        said: deque[str] = deque(maxlen=LINES)
        told: list[str] = []
        process = start([*command, *rest], **environment)
        for line in lines(process, deadline):
            if not line.startswith('{"item"'):
                said.append(line)
                continue
            done = json.loads(line)
            rest.remove(done["item"])
            tell(done["item"], done["result"], "\n".join(said))
            told.append(done["item"])
            said.clear()
            barren = 0
        if time.monotonic() < deadline:
            ended(told, process.returncode, "\n".join(said))
        if rest and time.monotonic() < deadline:
            words = "\n".join(said)
            for item in rest if barren == 2 else rest[:1]:
                tell(item, {"failed": f"the process ended with {process.returncode}: {words}"}, words)
            rest = [] if barren == 2 else rest[1:]
    return rest
