"""The training loop: one process, one device, repeatable and resumable to the bit."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from fastssl import methods, models
from fastssl.data import engines
from fastssl.data.audio import Recordings, WindowLoader
from fastssl.data.clips import ClipLoader, ClipSet
from fastssl.data.images import ImageSet, Splits
from fastssl.data.loader import Batches
from fastssl.data.media import Data
from fastssl.data.reading import Progress as Counted
from fastssl.errors import UserError
from fastssl.eval.features import extract
from fastssl.eval.knn import KNNConfig, knn_accuracy
from fastssl.files import atomic_write
from fastssl.methods import Method
from fastssl.optim import build_optimizer, learning_rate, set_rates, weight_decay
from fastssl.train import checkpoint as checkpoints
from fastssl.train import config as configs
from fastssl.train.checkpoint import Checkpoint
from fastssl.train.compiled import Compiled
from fastssl.train.config import RunConfig
from fastssl.train.folder import RunFolder
from fastssl.train.health import CollapseWatch
from fastssl.train.interrupt import StopRequest, stop_on_signal
from fastssl.train.log import MetricsLog, Row
from fastssl.train.reproduce import (
    check_threads,
    environment,
    fingerprint,
    reproducible,
    resolve_device,
    rng_state,
    set_rng_state,
)
from fastssl.train.trial import Trial


@dataclass(frozen=True)
class Progress:
    """A step that was done, for whoever watches. Steps and epochs count from 1.

    Attributes:
        warning: a sentence, in the one step in which training was seen to have collapsed.
    """

    row: Row
    steps: int
    steps_per_epoch: int
    epochs: int
    warning: str | None = None


Watcher = Callable[[Progress], None]


def build_method(config: RunConfig) -> Method:
    """The method with the initial weights of ``config.seed``, on the CPU; torch's generators are left as they were.

    Raises:
        UserError: if the method cannot work with its settings.
    """
    kind = methods.get(config.method)
    with reproducible(config.seed, config.threads):
        try:
            encoder = models.get(config.encoder)(**config.encoder_options())
            size = config.media.samples if config.modality == "audio" else config.view_plan().size
            return kind.build(encoder, config.method_config, size)
        except ValueError as error:
            raise UserError(f"{config.method}: {error}") from error


def check_views(method: Method, config: RunConfig) -> None:
    """Sees whether ``method`` takes views of the sizes it will be given, before a run is begun; it stays as it is.

    Raises:
        UserError: if it does not.
    """
    if config.modality == "audio":
        views = [torch.zeros(2, config.media.samples)]
    else:
        clip = (config.media.frames,) if config.modality == "video" else ()
        views = [torch.zeros(2, *clip, 3, size, size) for size in config.view_plan().sizes]
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        try:
            copy.deepcopy(method).eval()(views)
        except ValueError as error:
            raise UserError(f"the views do not suit the method: {error}") from error
        except RuntimeError as error:
            if not str(error).startswith("Sizes of tensors must match"):
                raise
            sides = " and ".join(map(str, sorted({view.shape[-1] for view in views})))
            raise UserError(f"{type(method).__name__} takes views of one size alone; got {sides} pixels") from error


def pretrain(
    config: RunConfig,
    data: Data,
    folder: RunFolder,
    *,
    resume: bool = False,
    overwrite: bool = False,
    watch: Watcher = lambda _: None,
    watch_knn: Counted = lambda done, total: None,
) -> Checkpoint:
    """Trains ``config`` on ``data`` and leaves config, metrics and checkpoints in ``folder``.

    A checkpoint is written before the first step, after each epoch, and when SIGINT or SIGTERM asks to stop. With the
    same device and thread count, stopping and resuming give the bits of a run that was never stopped.

    Args:
        config: what to compute.
        data: of ``config.data``: images to train on, and those that the online kNN classifies, if they have labels; or
            clips or recordings, if these are what the method takes.
        resume: continue the run in ``folder``.
        overwrite: replace the run in ``folder``, as soon as the first checkpoint of the new one is on disk.
        watch: called after every step.
        watch_knn: called with (images done, images in all) while the online kNN computes features.
    Returns:
        The last checkpoint.
    Raises:
        KeyboardInterrupt: saying how far it came, if SIGINT or SIGTERM stopped it; the checkpoint is written.
        UserError: before anything is written, if ``config``, data and folder do not fit each other or another process
            is writing to the folder; later, if the loss is not finite (the last good checkpoint stays), the disk is
            full, or more files cannot be read than are allowed, for which those to test on are read early, too: of
            theirs it is told after a checkpoint is written.
    """
    folder.check(resume=resume, overwrite=overwrite)
    device = resolve_device(config.device)
    check_threads(config.threads)
    method = build_method(config)
    check_views(method, config)
    with folder.lock(), reproducible(config.seed, config.threads), stop_on_signal() as stop:
        trainer = _Trainer(config, method, data, device, watch_knn, stop)
        with closing(trainer.loader), closing(trainer.trial):
            state = _resumed(trainer, folder) if resume else _started(trainer, folder)
            log = MetricsLog(folder, steps=trainer.steps_done)
            while not state.finished and not stop.requested:
                trainer.run_epoch(log, watch)
                trainer.check_weights()
                state = trainer.state()
                checkpoints.save(state, folder.checkpoint)
                if not stop.requested:
                    trainer.trial.check()
            if stop.requested:
                raise KeyboardInterrupt(f"stopped after step {trainer.steps_done} of {trainer.steps_total}")
    return state


def _started(trainer: _Trainer, folder: RunFolder) -> Checkpoint:
    """Begins the folder. The first checkpoint proves that there is room before an old run is removed for it."""
    trainer.prepare()
    state = trainer.state()
    with atomic_write(folder.checkpoint) as partial:
        checkpoints.write(state, partial)
        folder.clear()
    configs.save(trainer.config, folder.config)
    return state


def stopped(folder: RunFolder, config: RunConfig) -> Checkpoint:
    """The state of the run in ``folder``, which is to go on with ``config``.

    Raises:
        UserError: if there is none, or it was started with other settings.
    """
    state = checkpoints.load(folder.checkpoint)
    changed = configs.differences(configs.from_dict(state.config), config)
    if changed:
        what = "; ".join(changed)
        raise UserError(f"{folder.path} was started with other settings ({what}): resume without them, or start anew")
    return state


def _resumed(trainer: _Trainer, folder: RunFolder) -> Checkpoint:
    """Puts the trainer where the run stopped, after making sure that it is the same run."""
    state = stopped(folder, trainer.config)
    if state.data != trainer.data:
        what = f"{state.data} then, {trainer.data} now"
        raise UserError(f"{trainer.config.data} has changed since the run began ({what}): start anew")
    trainer.restore(state)
    return state


def _open_loader(config: RunConfig, data: Data, device: torch.device) -> Batches:
    """Batches of what the method takes.

    Raises:
        UserError: if there are too few of it.
    """
    train = data.train if isinstance(data, Splits) else data
    if len(train) < 2:
        what = {"image": "training image", "video": "clip", "audio": "recording"}[config.modality]
        raise UserError(f"{config.data} has {len(train)} {what}: training needs at least 2")
    batch_size, seed, skipped = config.batch_size, config.seed, config.max_skipped
    if isinstance(train, Recordings):
        return WindowLoader(train, config.media.samples, batch_size, seed, device=device, max_skipped=skipped)
    if isinstance(train, ClipSet):
        return ClipLoader(train, config.view_plan(), batch_size, seed, device=device, max_skipped=skipped)
    plan, layout = config.view_plan(), config.channels_last
    return engines.open_loader(config.engine, train, plan, batch_size, seed, device, channels_last=layout)


class _Trainer:
    """What a step touches: method, optimizer, loader, and the position in the run."""

    def __init__(
        self,
        config: RunConfig,
        method: Method,
        data: Data,
        device: torch.device,
        watch_knn: Counted,
        stop: StopRequest,
    ) -> None:
        self.config, self.device, self.watch_knn, self.stop = config, device, watch_knn, stop
        self.splits = data if isinstance(data, Splits) else None
        self.method = method.to(device).train()
        if config.channels_last:
            cast(Any, self.method).to(memory_format=torch.channels_last)  # which its annotations do not tell of
        self.loader = _open_loader(config, data, device)
        self.optimizer = build_optimizer(self.method, config.optim)
        self.health = CollapseWatch(self.method)
        self.computing: Callable[[], AbstractContextManager[None]] = nullcontext
        if config.compile:
            self.computing = Compiled(self.method).step
        what = {"image": "images", "video": "clips", "audio": "recordings"}[config.modality]
        self.data = fingerprint(data.train.images if isinstance(data, Splits) else data, what)
        self.epoch, self.step, self.seconds = 0, 0, 0.0
        self.trial = Trial(None if self.splits is None else self.splits.test)

    @property
    def steps_done(self) -> int:
        return self.epoch * self.loader.steps_per_epoch + self.step

    @property
    def steps_total(self) -> int:
        return self.config.epochs * self.loader.steps_per_epoch

    def state(self) -> Checkpoint:
        return Checkpoint(
            config=configs.to_dict(self.config),
            model=self.method.state_dict(),
            optimizer=self.optimizer.state_dict(),
            epoch=self.epoch,
            step=self.step,
            seconds=self.seconds,
            rng=rng_state(),
            data=self.data,
            environment=environment(self.device),
        )

    def restore(self, state: Checkpoint) -> None:
        self.method.load_state_dict(state.model)
        self.optimizer.load_state_dict(state.optimizer)
        self.epoch, self.step, self.seconds = state.epoch, state.step, state.seconds
        set_rng_state(state.rng)

    def prepare(self) -> None:
        """Shows the method the views of the first epoch, before it begins."""

        def batches() -> Iterator[list[Tensor]]:
            for views in self.loader.epoch(0):
                if self.stop.requested:
                    raise KeyboardInterrupt("stopped before the first step: nothing was written")
                yield views

        self.method.prepare(batches())

    def run_epoch(self, log: MetricsLog, watch: Watcher) -> None:
        """The rest of the epoch in progress, or as much as is done when a stop is requested or the trial fails."""
        steps = self.loader.steps_per_epoch
        started = time.perf_counter()
        for views in self.loader.epoch(self.epoch, self.step):
            waited = time.perf_counter() - started
            loss = self._train_step(views)
            elapsed = time.perf_counter() - started
            self.seconds += elapsed
            self.step += 1
            row = self._row(loss, elapsed, waited)
            log.write(row)
            warning = self.health.warning(row.step, row.extra)
            watch(Progress(row, self.steps_total, steps, self.config.epochs, warning))
            if self.stop.requested or self.trial.failed:
                break
            started = time.perf_counter()
        if self.step == steps:
            self.epoch, self.step = self.epoch + 1, 0

    def _train_step(self, views: list[Tensor]) -> float:
        """One update of the weights. Returns the loss before it."""
        step = self.steps_done
        set_rates(self.optimizer, self._learning_rate(step), self._weight_decay(step))
        self.method.before_step(step, total=self.steps_total, per_epoch=self.loader.steps_per_epoch)
        low = self.config.precision == "bfloat16"
        with self.computing():
            with self.health.forward(step), torch.autocast(self.device.type, torch.bfloat16, enabled=low):
                loss = self.method(views)
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
        self.optimizer.step()
        self.method.after_step((self.steps_done + 1) / self.steps_total)
        value = float(loss.detach())  # waits for the device, which by now has all of the step to do
        if not math.isfinite(value):
            raise self._diverged(f"the loss is {value}")
        return value

    def _row(self, loss: float, seconds: float, waited: float) -> Row:
        """Of the step just done, which took ``seconds``, of which it ``waited`` for its views."""
        batch = self.config.batch_size
        last_of_epoch = self.step == self.loader.steps_per_epoch
        return Row(
            step=self.steps_done,
            epoch=self.epoch + 1,
            lr=self._learning_rate(self.steps_done - 1),
            loss=loss,
            images_per_second=batch / seconds,
            seconds=self.seconds,
            waiting=waited / seconds,
            knn=self._online_knn() if last_of_epoch and self._evaluation_due() else None,
            extra={**self._scheduled(), **self.health.signs(), **self.method.metrics(loss, batch)},
        )

    def _scheduled(self) -> dict[str, float]:
        """What the step just done was made with beside its learning rate, of what changes from step to step."""
        changing = self.config.optim.final_weight_decay is not None
        decay = {"weight_decay": self._weight_decay(self.steps_done - 1)} if changing else {}
        return decay | self.method.now

    def _learning_rate(self, step: int) -> float:
        return learning_rate(self.config.optim, step, total=self.steps_total, per_epoch=self.loader.steps_per_epoch)

    def _weight_decay(self, step: int) -> float:
        return weight_decay(self.config.optim, step, total=self.steps_total, per_epoch=self.loader.steps_per_epoch)

    def check_weights(self) -> None:
        """Keeps a checkpoint whose weights overflowed in the epoch's last step from replacing a good one."""
        if not all(bool(p.isfinite().all()) for p in self.method.parameters()):
            raise self._diverged("the weights are not finite")

    def _diverged(self, what: str) -> UserError:
        lr = self.optimizer.param_groups[0]["lr"]
        return UserError(
            f"{what} at step {self.steps_done + 1} (epoch {self.epoch + 1}, learning rate {lr:.3g}), the last good "
            "checkpoint is kept: start anew with --overwrite and a smaller --optim.lr, more --optim.warmup_epochs or "
            "--precision float32"
        )

    def _evaluation_due(self) -> bool:
        every, done = self.config.eval_every, self.epoch + 1
        labelled = self.splits is not None and self.splits.test is not None and self.splits.test.labels is not None
        return labelled and every > 0 and (done % every == 0 or done == self.config.epochs)

    def _online_knn(self) -> float | None:
        """Accuracy in [0, 1] of the encoder as it is now; None if none of the test images can be read.

        And if the trial fails, or a stop is requested before it is done.
        """
        assert self.splits is not None
        if not self.trial.wait(self.stop):
            return None
        splits = self.splits.readable()
        train, test = splits.train, splits.test
        if test is None:
            return None
        assert train.labels is not None
        assert test.labels is not None
        labelled = self._features(train, 0), train.labels, self._features(test, len(train)), test.labels
        return knn_accuracy(*labelled, num_classes=len(train.classes), k=min(KNNConfig.k, len(train)))

    def _features(self, images: ImageSet, before: int) -> Tensor:
        """Of one of the two splits, after ``before`` images of the other."""
        assert self.splits is not None
        assert self.splits.test is not None
        total = len(self.splits.train) + len(self.splits.test)
        return extract(
            self.method.kept,
            images.images,
            size=self.config.image_size,
            device=self.device,
            progress=lambda done, _: self.watch_knn(before + done, total),
        )
