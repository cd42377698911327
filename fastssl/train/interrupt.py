"""Stopping between two steps when the user or the system asks for it."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class StopRequest:
    """Whether SIGINT or SIGTERM has come."""

    def __init__(self) -> None:
        self.requested = False

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.requested:  # asked twice: at once
            signal.default_int_handler(number, frame)
        self.requested = True


@contextmanager
def stop_on_signal() -> Iterator[StopRequest]:
    """Within it, the first SIGINT or SIGTERM sets ``requested``, the second raises KeyboardInterrupt.

    Outside the main thread, where Python allows no handlers, signals keep their effect.
    """
    stop = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, stop._receive) for number in numbers]
    try:
        yield stop
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
