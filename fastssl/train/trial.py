"""The images to test on, tried while the first steps are trained: what cannot be read is not found out hours later."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import replace

from fastssl.data.images import ImageSet
from fastssl.data.rows import FileRows
from fastssl.data.threads import give_way
from fastssl.train.interrupt import StopRequest

# Seconds between two looks at whether to stop.
_LOOKS = 0.1


class Trial:
    """Reads images on threads that give way to those of the training step, to find out which cannot be.

    Each of those is named when it is met, as everywhere. It costs little: what was tried is not tried again when the
    run is scored, and decoded images are kept.

    Args:
        images: to try; None for none.
    """

    def __init__(self, images: ImageSet | None) -> None:
        self._ended = False
        self._pool = ThreadPoolExecutor(1, "try", give_way)
        self._result: Future[ImageSet] | None = None
        if images is not None and isinstance(images.images, FileRows):
            watched = replace(images, images=images.images.guarded(self._look))
            self._result = self._pool.submit(watched.readable, lambda done, total: self._look())

    @property
    def failed(self) -> bool:
        """Whether the reading has ended before all were tried: ``check`` says why."""
        return self._result is not None and self._result.done() and self._result.exception() is not None

    def check(self) -> None:
        """Raises what the reading ended with, if it has ended.

        Raises:
            UserError: if more files cannot be read than are allowed, or the source has changed.
        """
        if self._result is not None and self._result.done():
            self._result.result()

    def wait(self, stop: StopRequest) -> bool:
        """Waits until the reading has ended, or a stop is requested. Returns whether all were tried."""
        while self._result is not None and not self._result.done():
            if stop.requested:
                return False
            wait([self._result], _LOOKS)
        return not self.failed

    def close(self) -> None:
        """Ends it, whether all are read or not, after the file that is being read."""
        self._ended = True
        self._pool.shutdown()
        self._result = None  # and with it the threads that it holds

    def _look(self) -> None:
        if self._ended:
            raise _EndedError


class _EndedError(Exception):
    """Nobody waits for the rest."""
