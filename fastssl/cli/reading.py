"""Reading data as every command does that reads it: with a bar, and from the cache unless that is not wanted."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

from fastssl import methods
from fastssl.cli import console
from fastssl.cli.parser import Parser
from fastssl.data import engines, images, media, shards
from fastssl.data.clips import ClipSet
from fastssl.data.images import Cache, ImageSet, Skipped, Splits
from fastssl.data.media import Data, Modality
from fastssl.data.reading import Progress, quote
from fastssl.data.webdataset import InShards, open_shards
from fastssl.errors import UserError
from fastssl.train.config import RunConfig

# The most that decoded images may take of the disk by default, in GB.
CACHE_LIMIT = 50.0
# Images that are read before a run begins, to see that there are any.
_TRIED = 8


def add_cache_options(parser: Parser) -> None:
    """The options ``--no_cache`` and ``--cache_limit``."""
    parser.add_argument(
        "--no_cache",
        action="store_true",
        help="decode every image anew, and keep nothing for the next start; else decoded images are kept in "
        "$FASTSSL_CACHE, by default ~/.cache/fastssl",
    )
    parser.add_argument(
        "--cache_limit",
        type=float | None,
        metavar="GB",
        help="the most that decoded images may take of the disk; those of sets that were not used for longest are "
        f"dropped, but never of one in use. null takes $FASTSSL_CACHE_LIMIT, by default {CACHE_LIMIT:g}",
    )


def cache(no_cache: bool, limit: float | None) -> Cache | None:
    """The cache that the options ask for.

    Raises:
        UserError: if the limit is no amount.
    """
    folder = None if no_cache else cache_folder()
    return None if folder is None else Cache(folder, console.tell, int(1e9 * _limit(limit)))


def _limit(given: float | None) -> float:
    """In GB."""
    if given is None:
        try:
            given = float(os.environ.get("FASTSSL_CACHE_LIMIT") or CACHE_LIMIT)
        except ValueError:
            given = math.nan
    if not 0 <= given < math.inf:
        raise UserError("--cache_limit and $FASTSSL_CACHE_LIMIT are amounts in GB, such as 20")
    return given


def load(config: RunConfig, cache: Cache | None) -> Data:
    """What a run is trained on: images, which are decoded as they are needed, or media.

    Raises:
        UserError: if that is not there, or not of the kind that the method takes.
    """
    source, size, seed, most = config.data, config.image_size, config.seed, config.max_skipped
    try:
        if config.modality != "image":
            with console.reading(source, media.PLURALS[config.modality]) as progress:
                return media.open_media(source, config.modality, config.media, max_skipped=most, progress=progress)
        if shards.are_at(source):
            engines.check_shards(config.engine, source)
            with console.reading(source, "shards") as progress:
                return open_shards(source, size=size, max_skipped=most, progress=progress)
        if config.engine in ("stream", "dali"):
            reader = f"the engine {config.engine!r}"
            return images.stream(source, size=size, seed=seed, max_skipped=most, reader=reader)
        with console.reading(source) as progress:
            return images.load_lazily(source, size=size, seed=seed, max_skipped=most, progress=progress, cache=cache)
    except UserError as error:
        raise _of_another_kind(source, config.modality, config.method, is_method=True) or error from None


@contextmanager
def loaded(config: RunConfig, cache: Cache | None) -> Iterator[Data]:
    """What ``load`` gives; clips are closed in the end."""
    data = load(config, cache)
    try:
        yield data
    finally:
        if isinstance(data, ClipSet):
            data.close()


def try_some(data: Data) -> None:
    """Sees whether any of a few images to train on, spread evenly, can be read: before anything is written.

    Raises:
        UserError: if none can be.
    """
    if not isinstance(data, Splits):
        return
    train = data.train
    step = -(-len(train) // _TRIED)
    some = train.subset(torch.arange(0, len(train), step))
    if not len(some.readable()):
        raise UserError(f"no readable image in {train.source!r} ({quote(train.skipped)}): give whole image files")


def skipped(data: Data) -> Sequence[Skipped]:
    """The files that could not be used, those met so far."""
    return data.train.skipped if isinstance(data, Splits) else data.skipped


def load_images(config: RunConfig, cache: Cache | None, other: str | None = None) -> Splits:
    """The images to score a run on, those that can be read: its own, or ``other`` ones, which are decoded at once.

    They are described, and those that cannot be read are named and counted.

    Raises:
        UserError: if its own are no images.
    """
    if other is not None:
        refuse_shards(other, "have no labels to score by")
        with images_of(other, "evaluate") as progress:
            found = images.load(
                other,
                size=config.image_size,
                seed=config.seed,
                max_skipped=config.max_skipped,
                progress=progress,
                cache=cache,
            )
        console.describe_data(found, other, reported=False)
        return found
    if config.modality != "image":
        raise UserError(
            f"{config.method} takes {media.PLURALS[config.modality]}, which have no labels to score its encoder on: "
            "give labelled images by --data"
        )
    own = load(config, cache)
    assert isinstance(own, Splits)
    if isinstance(own.train.images, InShards):
        raise UserError(
            f"the run was trained on the shards {config.data!r}, of which no labels are read to score its encoder on: "
            "give labelled images by --data"
        )
    console.describe_data(own, config.data, reported=False)
    known = len(skipped(own))
    with console.reading(config.data) as progress:
        readable = own.readable(progress)
    console.sum_up(skipped(own), known, console.ABOVE)
    return readable


def refuse_shards(source: str, why: str) -> None:
    """Refuses shards where images are read by another way.

    Raises:
        UserError: saying ``why``, and what to give.
    """
    if shards.are_at(source):
        raise UserError(f"{source!r} are shards, which {why}: give the images that they were packed from")


def refuse_recordings(config: RunConfig) -> None:
    """Refuses a run whose encoder takes no images.

    Raises:
        UserError: saying what to do with it.
    """
    if config.modality == "audio":
        raise UserError(
            f"{config.method} learns from recordings, and its encoder takes no images: fastssl export writes it, and "
            "docs/methods/cpc_audio.md shows how to score one"
        )


def load_all(source: str, cache: Cache | None, *, size: int, max_skipped: float) -> ImageSet:
    """`images.load_all` with a bar, for ``embed``. Shards are refused."""
    refuse_shards(source, "are for training alone")
    with images_of(source, "embed") as progress:
        return images.load_all(source, size=size, max_skipped=max_skipped, progress=progress, cache=cache)


@contextmanager
def images_of(source: str, taker: str) -> Iterator[Progress]:
    """A bar of the images that ``taker``, a command, reads of ``source``.

    Raises:
        UserError: that which is raised within, unless the source holds something else: then it says what.
    """
    try:
        with console.reading(source) as progress:
            yield progress
    except UserError as error:
        raise _of_another_kind(source, "image", taker) or error from None


def _of_another_kind(source: str, wanted: Modality, taker: str, *, is_method: bool = False) -> UserError | None:
    """What to say of data that is there, and not what ``taker``, a method or a command, is given."""
    kinds = media.held(source)
    if not kinds or wanted in kinds or (wanted == "video" and "image" in kinds):  # frames, perhaps
        return None
    plurals = media.PLURALS
    fitting = [name for name in methods.names() if is_method and methods.get(name).modality in kinds]
    advice = f"take a method for them ({', '.join(fitting)}), or " if fitting else ""
    return UserError(
        f"{source!r} holds {' and '.join(plurals[kind] for kind in kinds)}, and {taker} takes {plurals[wanted]}: "
        f"{advice}give it {plurals[wanted]}"
    )


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
