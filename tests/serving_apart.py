"""What runs in processes of their own in tests/train/test_apart.py, which a new process can import."""

from __future__ import annotations

import subprocess
import sys
import time
from multiprocessing.connection import Connection
from pathlib import Path

COUNTS = "import time\nwhile True:\n    print('.', end='', flush=True)\n    time.sleep(0.001)"


def doubles(link: Connection, first: int) -> None:
    link.send(first)
    while True:
        asked = link.recv()
        link.send(ValueError(f"{asked} is odd") if asked % 2 else 2 * asked)


def counts(link: Connection, file: Path) -> None:
    """Has a process of its own write on and on, and answers how much."""
    with file.open("wb") as out:
        started = subprocess.Popen([sys.executable, "-c", COUNTS], stdout=out)
    link.send(started.pid)
    while True:
        before, wanted = file.stat().st_size, link.recv()
        while file.stat().st_size < before + wanted:
            time.sleep(0.001)
        link.send(file.stat().st_size)


def ends(_link: Connection) -> None:
    pass
