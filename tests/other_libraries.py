"""Other libraries in tests: a test that needs one which is not installed is skipped, saying so."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from benchmarks import rivals


@contextmanager
def skipped_if_missing() -> Iterator[None]:
    """Skips the test, or a whole file in its own lines, where something inside loads a library that is missing."""
    try:
        yield
    except rivals.NotInstalledError as missing:
        pytest.skip(str(missing), allow_module_level=True)


def load_or_skip(module: str) -> Any:
    """The module of a library that we are compared with."""
    with skipped_if_missing():
        return rivals.load(module)
