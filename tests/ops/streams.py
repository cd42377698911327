"""CUDA streams that are none, which note what is asked of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest
import torch


@dataclass
class Streams:
    """Which stream is the current one, whether a graph is being captured, and what events were asked for."""

    current: str = "first"
    capturing: bool = False
    said: list[str] = field(default_factory=list)


@contextmanager
def noted_streams() -> Iterator[Streams]:
    """Inside, torch.cuda's streams and events are these."""
    streams = Streams()

    class Event:
        def record(self, stream: object) -> None:
            streams.said.append(f"recorded in {streams.current}")

    class Stream:
        def wait_event(self, event: object) -> None:
            assert isinstance(event, Event)
            streams.said.append(f"{streams.current} waits")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "Event", Event)
        patch.setattr(torch.cuda, "current_stream", lambda _=None: Stream())
        patch.setattr(torch.cuda, "is_current_stream_capturing", lambda: streams.capturing)
        yield streams
