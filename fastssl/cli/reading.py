"""Reading images as every command does that reads them: with a bar, and from the cache unless that is not wanted."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from fastssl.cli import console
from fastssl.cli.parser import Parser
from fastssl.data import engines, images
from fastssl.data.images import Cache, ImageSet, Splits
from fastssl.train.config import RunConfig


def add_no_cache(parser: Parser) -> None:
    """The option ``--no_cache``."""
    parser.add_argument(
        "--no_cache",
        action="store_true",
        help="read every image anew, and keep nothing for the next start; else decoded images are kept in "
        "$FASTSSL_CACHE, by default ~/.cache/fastssl",
    )


def load(config: RunConfig, *, no_cache: bool, other: str | None = None) -> Splits:
    """The images of a run, which are not brought into memory where its engine reads files; or ``other`` ones."""
    source, size, seed = other or config.data, config.image_size, config.seed
    if other is None and config.engine not in engines.IN_MEMORY:
        return images.stream(source, size=size, seed=seed)
    with console.reading(source) as progress:
        return images.load(source, size=size, seed=seed, progress=progress, cache=_cache(no_cache))


def load_all(source: str, *, size: int, no_cache: bool) -> ImageSet:
    """`images.load_all` with a bar."""
    with console.reading(source) as progress:
        return images.load_all(source, size=size, progress=progress, cache=_cache(no_cache))


def _cache(no_cache: bool) -> Cache | None:
    folder = None if no_cache else cache_folder()
    return None if folder is None else Cache(folder, console.tell)


def cache_folder() -> Path | None:
    """``$FASTSSL_CACHE``, else ``$XDG_CACHE_HOME/fastssl``, else ``~/.cache/fastssl``; None for who has no home."""
    if own := os.environ.get("FASTSSL_CACHE"):
        return Path(own)
    shared = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if shared.is_absolute():  # others are to be ignored, says the XDG base directory specification
        return shared / "fastssl"
    with suppress(RuntimeError):
        return Path.home() / ".cache" / "fastssl"
    return None
