"""The images to test on, tried while the first steps are trained: what cannot be read is not found out hours later."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor

from fastssl.data.images import ImageSet
from fastssl.data.threads import give_way


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
        if images is not None:
            self._result = self._pool.submit(images.readable, self._go_on)

    def check(self, *, wait: bool = False) -> None:
        """Raises what the reading ended with, if it has ended; or, to ``wait``, once it has.

        Raises:
            UserError: if more files cannot be read than are allowed, or the source has changed.
        """
        if self._result is not None and (wait or self._result.done()):
            self._result.result()

    def close(self) -> None:
        """Ends it, whether all are read or not."""
        self._ended = True
        self._pool.shutdown()
        self._result = None  # and with it the threads that it holds

    def _go_on(self, done: int, total: int) -> None:
        if self._ended:
            raise _EndedError


class _EndedError(Exception):
    """Nobody waits for the rest."""
