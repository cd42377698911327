"""A process of its own that stands still while it is not asked, so that nothing it does ahead takes others' time."""

from __future__ import annotations

import multiprocessing
import os
import signal
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any


class Apart:
    """A process that answers questions, and between answers stands still, with the processes that it started.

    Args:
        serve: what runs there, with the process's end of a pipe and ``given``. It sends one answer when it is ready,
            and one to each question that it receives; an exception that it sends is raised here.
        given: what can be pickled.
    """

    def __init__(self, serve: Callable[..., None], *given: Any) -> None:
        context = multiprocessing.get_context("spawn")
        self._link, far_end = context.Pipe()
        self._process = context.Process(target=_begin, args=(serve, far_end, *given))
        self._process.start()
        far_end.close()
        self._end = weakref.finalize(self, _kill, self._process)

    def ask(self, question: Any) -> Any:
        """The answer to ``question``.

        Raises:
            EOFError: if it has ended, or ends before.
        """
        with _one_end():
            self._signal(signal.SIGCONT)
            self._link.send(question)
        return self.answer()

    def answer(self) -> Any:
        """What the process sends next: at first that it is ready. Then it stands still.

        Raises:
            EOFError: if it ends before.
        """
        with _one_end():
            answer = self._link.recv()
        if isinstance(answer, Exception):
            raise answer
        with _one_end():
            self._signal(signal.SIGSTOP)
        return answer

    def kill(self) -> None:
        """Ends it, and those that it started."""
        self._end()

    def _signal(self, what: signal.Signals) -> None:
        _signal_group(self._process, what)


def _begin(serve: Callable[..., None], link: Connection, *given: Any) -> None:
    os.setpgid(0, 0)  # a group of its own: signals reach what it starts, too, and the terminal's Ctrl-C does not
    serve(link, *given)


@contextmanager
def _one_end() -> Iterator[None]:
    """However the end of a process is noticed, it is an EOFError."""
    try:
        yield
    except (ConnectionError, ProcessLookupError) as end:
        raise EOFError("the process has ended") from end


def _signal_group(process: BaseProcess, what: signal.Signals) -> None:
    assert process.pid is not None
    os.killpg(process.pid, what)


def _kill(process: BaseProcess) -> None:
    with suppress(ProcessLookupError):  # before it had a group, or after its end
        _signal_group(process, signal.SIGKILL)
    process.kill()
    process.join()
