"""How fast each engine makes views of a user's own images, and what a training step would need of them."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from itertools import count
from multiprocessing.connection import Connection
from typing import Any

import torch
from torch import Tensor

from fastssl import models
from fastssl.allocator import keep_freed_memory
from fastssl.data import engines, plans
from fastssl.data.engines import Engine
from fastssl.data.images import ImageSet, Progress, Skipped
from fastssl.data.plans import ViewPlan
from fastssl.data.sample import load_some
from fastssl.errors import UserError
from fastssl.models.resnet import Stem
from fastssl.models.vit import Pool
from fastssl.train.apart import Apart
from fastssl.train.config import ENCODER_OPTIONS, check_seed, plan_changes
from fastssl.train.memory import PeakMemory
from fastssl.train.reproduce import check_threads, environment, reproducible, resolve_device

_TURNS = 5
# Images of a batch, where nothing is said and the data has so many.
_BATCH = 256
# Images of a step on a CPU, whose time grows with their number: a whole batch may take a minute.
_STEP_IMAGES = 32
# Next to nothing of an image: what is left of the time is reading and decoding.
_A_PIXEL = ViewPlan(size=1, crop_scale=(1e-4, 1e-4))


@dataclass(frozen=True)
class BenchConfig:
    """What is measured.

    Attributes:
        data: folder, zip or tar of images, or an embedded set.
        preset: plan of the views.
        plan: changes to it, as `fastssl.data.plans.changed` takes them.
        image_size: side of the square images, in pixels.
        batch_size: images a step; 0 takes 256, or all where there are fewer.
        encoder: network whose step is timed: forward and backward, on all views.
        stem: first layers of a ResNet or AlexNet, "imagenet" or "cifar"; what is not set (null) is the
            encoder's own, here and below.
        width: channels of their first stage, or of a Vision Transformer's tokens.
        max_stride: pixels a position of a ResNet's last map stands for, at most.
        depth: blocks of a Vision Transformer.
        patch_size: side of its patches, in pixels.
        pool: what becomes its features: the "mean" of the patches' tokens, or the class "token".
        device: "auto" (a GPU if there is one), "cpu", "cuda" or "cuda:N".
        threads: CPU threads; 0 leaves torch's own choice.
        seconds: that each engine, and the step, is measured for, in five turns.
        max_images: files that are used, drawn by the seed; more would only take longer.
        seed: of which files are used, and of the views.
    """

    data: str
    preset: str = "simclr"
    plan: Mapping[str, Any] = field(default_factory=dict)
    image_size: int = 64
    batch_size: int = 0
    encoder: str = "resnet18"
    stem: Stem | None = None
    width: int | None = None
    max_stride: int | None = None
    depth: int | None = None
    patch_size: int | None = None
    pool: Pool | None = None
    device: str = "auto"
    threads: int = 0
    seconds: float = 10.0
    max_images: int = 2048
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("image_size", "max_images", "width", "max_stride", "depth", "patch_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{name} must be 1 or more; got {value}")
        for name in ("batch_size", "threads"):
            if getattr(self, name) < 0:
                raise UserError(f"{name} must be 0 or more; got {getattr(self, name)}")
        if not 0 < self.seconds < math.inf:
            raise UserError(f"seconds must be a finite number above 0; got {self.seconds}")
        if self.max_images < self.batch_size:
            raise UserError(f"max_images must be at least batch_size, {self.batch_size}; got {self.max_images}")
        check_seed(self.seed)
        check_threads(self.threads)
        object.__setattr__(self, "plan", plan_changes(self.plan))
        self.view_plan()
        self.encoder_options()

    def encoder_options(self) -> dict[str, Any]:
        """What the encoder is built with: its own defaults, and what is set."""
        given = {name: getattr(self, name) for name in ENCODER_OPTIONS}
        return models.options(self.encoder, image_size=self.image_size, **given)

    def view_plan(self) -> ViewPlan:
        """The preset with its changes."""
        return plans.changed(plans.get(self.preset)(self.image_size), self.plan)


@dataclass(frozen=True)
class Rate:
    """Images a second: the median of the turns, the slowest and the fastest."""

    median: float
    slowest: float
    fastest: float


@dataclass(frozen=True)
class EngineSpeed:
    """What an engine was measured at, or why it was not.

    Attributes:
        engine: its name.
        images: a second, each with all its views.
        ready_after: seconds to the first batch: what is read or decoded before.
        decoding: share of the time, in [0, 1], that reading and decoding takes; 0 where that is done once, before.
        peak_megabytes: of memory, at most, images in memory included; None where the system does not tell.
        cannot: the reason, if it cannot serve this data here.
    """

    engine: Engine
    images: Rate | None = None
    ready_after: float = 0.0
    decoding: float = 0.0
    peak_megabytes: float | None = None
    cannot: str | None = None


@dataclass(frozen=True)
class Throughput:
    """The result.

    Attributes:
        config: what was measured, with the batch size that it was measured with.
        images: how many were used.
        environment: of hardware and software.
        engines: what each was measured at.
        step: images a second that forward and backward of the encoder alone would take.
        skipped: files that were drawn and cannot be read.
    """

    config: BenchConfig
    images: int
    environment: dict[str, str]
    engines: tuple[EngineSpeed, ...]
    step: Rate
    skipped: tuple[Skipped, ...] = ()

    @property
    def fastest(self) -> EngineSpeed:
        """Of those that could be measured."""
        return max(self.engines, key=lambda item: item.images.median if item.images else -1.0)

    @property
    def bottleneck(self) -> str:
        """ "data" where even the fastest engine makes fewer images a second than the step takes, else "compute"."""
        assert self.fastest.images is not None
        return "data" if self.fastest.images.median < self.step.median else "compute"

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {**asdict(self), "fastest": self.fastest.engine, "bottleneck": self.bottleneck}


def load(config: BenchConfig, progress: Progress | None = None) -> ImageSet:
    """The images to measure with; errors are those of `fastssl.data.sample.load_some`."""
    return load_some(config.data, size=config.image_size, count=config.max_images, seed=config.seed, progress=progress)


def measure(config: BenchConfig, found: ImageSet, progress: Progress = lambda done, total: None) -> Throughput:
    """Times all engines and the step in turns, each engine in a process of its own that stands still in between.

    Args:
        config: what is measured.
        found: the images, as ``load`` gives them.
        progress: called with (done, in all) after each start of an engine and each turn.
    Raises:
        UserError: if no engine can serve the data, or the images are too few for a batch.
    """
    device = resolve_device(config.device)
    config = replace(config, batch_size=config.batch_size or min(_BATCH, len(found)))
    if len(found) < config.batch_size:
        raise UserError(
            f"a batch of {config.batch_size} is larger than the {len(found)} images that can be read: "
            f"give --batch_size {len(found)} or less"
        )
    with reproducible(config.seed, config.threads):
        step = _step(config, device)
        running: list[_Process] = []
        try:
            failed = _start(config, tuple(found.names), running, progress)
            rates, steps = _in_turns(running, step, config.seconds / _TURNS, progress)
            speeds = [process.finish(rates[process.engine], config.seconds / _TURNS) for process in running]
        finally:
            for process in running:
                process.kill()
        in_order = sorted([*speeds, *failed], key=lambda speed: engines.NAMES.index(speed.engine))
        skipped = tuple(found.skipped)
        return Throughput(config, len(found), environment(device), tuple(in_order), _rate(steps), skipped)


def _start(
    config: BenchConfig, names: tuple[str, ...], running: list[_Process], progress: Progress
) -> list[EngineSpeed]:
    """Puts a process for each engine into ``running``; those that cannot serve are returned."""
    failed = []
    for done, engine in enumerate(engines.NAMES, 1):
        try:
            engines.require(engine)
            running.append(_Process(engine, config, names))
            running[-1].wait_until_ready()
        except UserError as error:
            failed.append(EngineSpeed(engine, cannot=str(error)))
            if running and running[-1].engine == engine:
                running.pop().kill()
        progress(done, _starts_and_turns(len(engines.NAMES) - len(failed)))
    if not running:
        raise UserError("; ".join(f"{speed.engine}: {speed.cannot}" for speed in failed))
    return failed


def _in_turns(
    running: list[_Process], step: Callable[[float], float], seconds: float, progress: Progress
) -> tuple[dict[Engine, list[float]], list[float]]:
    """Images a second of each engine and of the step, turn by turn, so that a noisy moment falls on all alike."""
    rates: dict[Engine, list[float]] = {process.engine: [] for process in running}
    steps: list[float] = []
    done = count(len(engines.NAMES) + 1)  # after their starts
    for _ in range(_TURNS):
        for process in running:
            rates[process.engine].append(process.turn("views", seconds))
            progress(next(done), _starts_and_turns(len(running)))
        steps.append(step(seconds))
        progress(next(done), _starts_and_turns(len(running)))
    return rates, steps


def _starts_and_turns(running: int) -> int:
    """Starts of all engines, and turns of those ``running`` and of the step."""
    return len(engines.NAMES) + _TURNS * (running + 1)


def _rate(turns: list[float]) -> Rate:
    return Rate(statistics.median(turns), min(turns), max(turns))


def _step(config: BenchConfig, device: torch.device) -> Callable[[float], float]:
    """A function that trains for at least so many seconds, and returns images a second."""
    try:
        encoder = models.get(config.encoder)(**config.encoder_options()).to(device)
        encoder.eval()(torch.zeros(1, 3, config.view_plan().size, config.view_plan().size, device=device))
    except ValueError as error:
        raise UserError(f"{config.encoder}: {error}") from error
    encoder.train()
    batch = max(2, config.batch_size)  # batch norm needs two, of however few images there are
    batch = min(batch, _STEP_IMAGES) if device.type == "cpu" else batch
    views = [
        torch.randn(batch * part.views, 3, part.size, part.size, device=device) for part in config.view_plan().parts
    ]

    def once() -> Iterator[None]:
        while True:
            encoder.zero_grad(set_to_none=True)
            torch.stack([encoder(view).square().mean() for view in views]).sum().backward()  # type: ignore[no-untyped-call]
            yield

    steps = once()
    return lambda seconds: _timed(steps, batch, seconds, device)


def _timed(work: Iterator[Any], batch: int, seconds: float, device: torch.device) -> float:
    """Images a second of at least one batch and ``seconds``, after a first batch that was begun on before."""
    next(work)
    _wait_for(device)
    started, done, elapsed = time.perf_counter(), 0, 0.0
    while not done or elapsed < seconds:
        next(work)
        _wait_for(device)
        done, elapsed = done + batch, time.perf_counter() - started
    return done / elapsed


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class _Process:
    """An engine in a process of its own, which stands still unless it is its turn."""

    def __init__(self, engine: Engine, config: BenchConfig, names: tuple[str, ...]) -> None:
        self.engine = engine
        self._process = Apart(_serve, engine, config, names, torch.get_num_threads())
        self._ready_after = 0.0

    def wait_until_ready(self) -> None:
        with self._told_if_it_ends():
            self._ready_after = self._process.answer()

    def turn(self, what: str, seconds: float) -> float:
        """Images a second."""
        with self._told_if_it_ends():
            return float(self._process.ask((what, seconds)))

    def finish(self, turns: list[float], seconds: float) -> EngineSpeed:
        """The engine's result; the process only has to be ended after this."""
        peak = self.turn("peak", 0.0)
        rate = _rate(turns)
        decoding = 0.0
        if self.engine not in engines.IN_MEMORY:
            decoding = min(1.0, rate.median / self.turn("decoding", seconds))
        return EngineSpeed(self.engine, rate, self._ready_after, decoding, None if math.isnan(peak) else peak)

    def kill(self) -> None:
        self._process.kill()

    @contextmanager
    def _told_if_it_ends(self) -> Iterator[None]:
        try:
            yield
        except EOFError:
            raise UserError(f"its process ended unexpectedly, perhaps for lack of memory ({self.engine})") from None


def _serve(link: Connection, engine: Engine, config: BenchConfig, names: tuple[str, ...], threads: int) -> None:
    """The process of an engine: says after how many seconds it is ready, then does what it is asked for."""
    keep_freed_memory()  # as the command does
    torch.set_num_threads(threads)
    try:
        device = resolve_device(config.device)
        peak = None
        with suppress(OSError):
            peak = PeakMemory()
        started = time.perf_counter()
        data = _data(engine, config, names)
        work = _endless(engine, data, config.view_plan(), config, device)
        next(work)
        link.send(time.perf_counter() - started)
        while True:
            what, seconds = link.recv()
            if what == "peak":
                link.send(math.nan if peak is None else peak.megabytes())
                continue
            if what == "decoding":
                work = _endless(engine, data, _A_PIXEL, config, device)
            link.send(_timed(work, config.batch_size, seconds, device))
    except UserError as error:
        link.send(error)


def _data(engine: Engine, config: BenchConfig, names: tuple[str, ...]) -> ImageSet:
    if engine in engines.IN_MEMORY:
        return load_some(config.data, size=config.image_size, count=config.max_images, seed=config.seed)
    nothing = torch.empty(0, 3, config.image_size, config.image_size, dtype=torch.uint8)
    return ImageSet(nothing, None, (), names, config.data)


def _endless(
    engine: Engine, data: ImageSet, plan: ViewPlan, config: BenchConfig, device: torch.device
) -> Iterator[list[Tensor]]:
    """Epoch after epoch."""
    loader = engines.open_loader(engine, data, plan, config.batch_size, config.seed, device)
    return (views for epoch in count() for views in loader.epoch(epoch))
