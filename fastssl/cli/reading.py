"""Reading data as every command does that reads it: with a bar, and from the cache unless that is not wanted."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from fastssl import methods
from fastssl.cli import console
from fastssl.cli.parser import Parser
from fastssl.data import engines, images, media
from fastssl.data.images import MAX_SKIPPED, Cache, ImageSet, Splits
from fastssl.data.media import Data
from fastssl.errors import UserError
from fastssl.train.config import RunConfig


def add_no_cache(parser: Parser) -> None:
    """The option ``--no_cache``."""
    parser.add_argument(
        "--no_cache",
        action="store_true",
        help="read every image anew, and keep nothing for the next start; else decoded images are kept in "
        "$FASTSSL_CACHE, by default ~/.cache/fastssl",
    )


def load(config: RunConfig, *, no_cache: bool) -> Data:
    """What a run is trained on: images, which are not brought into memory where its engine reads files, or media.

    Raises:
        UserError: if that is not there, or not of the kind that the method takes.
    """
    source, size, seed = config.data, config.image_size, config.seed
    try:
        if config.modality != "image":
            with console.reading(source, media.PLURALS[config.modality]) as progress:
                return media.open_media(
                    source, config.modality, config.media, max_skipped=MAX_SKIPPED, progress=progress
                )
        if config.engine not in engines.IN_MEMORY:
            return images.stream(source, size=size, seed=seed)
        return _in_memory(source, size, seed, no_cache)
    except UserError as error:
        raise _of_another_kind(config) or error from None


def load_images(config: RunConfig, *, no_cache: bool, other: str | None = None) -> Splits:
    """The images to score a run on: its own, or ``other`` ones, which are brought into memory.

    Raises:
        UserError: if its own are no images.
    """
    if other is not None:
        return _in_memory(other, config.image_size, config.seed, no_cache)
    if config.modality != "image":
        raise UserError(
            f"{config.method} takes {media.PLURALS[config.modality]}, which have no labels to score its encoder on: "
            "give labelled images by --data"
        )
    found = load(config, no_cache=no_cache)
    assert isinstance(found, Splits)
    return found


def load_all(source: str, *, size: int, no_cache: bool) -> ImageSet:
    """`images.load_all` with a bar."""
    with console.reading(source) as progress:
        return images.load_all(source, size=size, progress=progress, cache=_cache(no_cache))


def _in_memory(source: str, size: int, seed: int, no_cache: bool) -> Splits:
    with console.reading(source) as progress:
        return images.load(source, size=size, seed=seed, progress=progress, cache=_cache(no_cache))


def _of_another_kind(config: RunConfig) -> UserError | None:
    """What to say of data that is there, but for other methods."""
    kinds = media.held(config.data)
    if not kinds or config.modality in kinds or (config.modality == "video" and "image" in kinds):  # frames, perhaps
        return None
    fitting = [name for name in methods.names() if methods.get(name).modality in kinds]
    advice = f"take a method for them ({', '.join(fitting)}), or " if fitting else ""
    return UserError(
        f"{config.data!r} holds {' and '.join(media.PLURALS[kind] for kind in kinds)}, and {config.method} takes "
        f"{media.PLURALS[config.modality]}: {advice}give it {media.PLURALS[config.modality]}"
    )


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
