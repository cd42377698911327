"""The engines that make views for training, by name: the one place that knows them all."""

from __future__ import annotations

from typing import Literal, get_args

import torch

from fastssl.data import dali
from fastssl.data.dali import DaliLoader
from fastssl.data.images import ImageSet, files_of
from fastssl.data.loader import Batches, Loader
from fastssl.data.plans import ViewPlan
from fastssl.data.stream import StreamLoader
from fastssl.data.webdataset import InShards, ShardLoader
from fastssl.errors import UserError

Engine = Literal["native", "stream", "dali"]
NAMES: tuple[Engine, ...] = get_args(Engine)
# What fits the data: "stream" for shards, else "native".
Choice = Literal["auto", "native", "stream", "dali"]

# These make views of the images that are in memory; the others read files again in each epoch.
IN_MEMORY = frozenset({"native"})


def require(engine: Choice) -> None:
    """Asks, before any work is done, whether ``engine`` can be had.

    Raises:
        UserError: saying what to install, if something is missing.
    """
    if engine == "dali":
        dali.require()


def check_shards(engine: Choice, source: str) -> None:
    """Refuses the engines that read no shards.

    Raises:
        UserError: naming the engine.
    """
    if engine not in ("auto", "stream"):
        raise UserError(f"{source!r} are shards, which the engine {engine!r} does not read: leave --engine out")


def open_loader(
    engine: Choice,
    data: ImageSet,
    plan: ViewPlan,
    batch_size: int,
    seed: int,
    device: torch.device,
    *,
    channels_last: bool = False,
) -> Batches:
    """Batches of views of ``data`` by ``plan``, made by ``engine``; to be closed.

    Args:
        engine: one of ``NAMES``, or "auto".
        data: the images; engines that are not ``IN_MEMORY`` read the files of its names and never its pixels.
        plan: how views are made of each image.
        batch_size: images a step.
        seed: 0 or more.
        device: where the views are made.
        channels_last: lay them out by position.
    Raises:
        UserError: if the engine cannot serve this data, is missing, or a number is out of range.
    """
    if isinstance(data.images, InShards):
        check_shards(engine, data.source)
        shards = data.images
        return ShardLoader(
            shards.shards, plan, batch_size, seed, files=shards.files, device=device, channels_last=channels_last
        )
    if engine in ("auto", *IN_MEMORY):
        return Loader(data, plan, batch_size, seed, device, channels_last=channels_last)
    files = files_of(data, engine)
    try:
        if engine == "stream":
            return StreamLoader(files, plan, batch_size, seed, device=device, channels_last=channels_last)
        if device.type == "cpu":
            return DaliLoader(files, plan, batch_size, seed, channels_last=channels_last)
        with torch.cuda.device(device):
            return DaliLoader(files, plan, batch_size, seed, device="mixed", channels_last=channels_last)
    except UserError:
        files.listing.close()
        raise
