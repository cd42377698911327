from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from fastssl.data import engines
from fastssl.data.images import Cache, ImageSet, Splits, load, load_lazily, stream
from fastssl.data.loader import Loader
from fastssl.errors import UserError
from fastssl.methods.simclr import SimCLR
from fastssl.optim import OptimConfig
from fastssl.train import checkpoint as checkpoints
from fastssl.train import config as configs
from fastssl.train import log
from fastssl.train.config import RunConfig
from fastssl.train.folder import RunFolder
from fastssl.train.loop import Progress, build_method, pretrain


def measured(folder: RunFolder) -> list[dict[str, Any]]:
    """What was logged, without the times."""
    rows = [row.flat() for row in log.read(folder.metrics)]
    times = ("images_per_second", "seconds", "waiting")
    return [{name: value for name, value in row.items() if name not in times} for row in rows]


def assert_same(a: Any, b: Any) -> None:
    """Nested dicts and lists are equal, tensors to the bit."""
    assert type(a) is type(b)
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b)
    elif isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_same(a[key], b[key])
    elif isinstance(a, list | tuple):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_same(x, y)
    else:
        assert a == b


def assert_same_run(a: RunFolder, b: RunFolder) -> None:
    one, other = checkpoints.load(a.checkpoint), checkpoints.load(b.checkpoint)
    assert_same(one.model, other.model)
    assert_same(one.optimizer, other.optimizer)
    assert_same(one.rng, other.rng)
    assert (one.epoch, one.step) == (other.epoch, other.step)
    assert measured(a) == measured(b)


def at_step(step: int, act: Callable[[], None]) -> Callable[[Progress], None]:
    return lambda progress: act() if progress.row.step == step else None


@pytest.fixture
def whole(config: RunConfig, splits: Splits, folder: RunFolder) -> RunFolder:
    """A run that nothing disturbed."""
    other = RunFolder(folder.path.with_name("whole"))
    assert pretrain(config, splits, other).finished
    return other


def test_the_same_seed_gives_the_same_bits(
    config: RunConfig, splits: Splits, folder: RunFolder, whole: RunFolder
) -> None:
    torch.rand(3)  # whatever state the process is in
    pretrain(config, splits, folder)
    assert_same_run(folder, whole)


def test_another_seed_gives_another_run(config: RunConfig, splits: Splits, folder: RunFolder, whole: RunFolder) -> None:
    pretrain(replace(config, seed=1), splits, folder)
    assert [row["loss"] for row in measured(folder)] != [row["loss"] for row in measured(whole)]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("step", [1, 5, 6, 9], ids=["first", "mid-epoch", "end of an epoch", "last"])
def test_a_stopped_run_resumes_to_the_same_bits(
    step: int, number: signal.Signals, config: RunConfig, splits: Splits, folder: RunFolder, whole: RunFolder
) -> None:
    handler = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt, match=f"stopped after step {step} of 9"):
        pretrain(config, splits, folder, watch=at_step(step, lambda: signal.raise_signal(number)))
    assert signal.getsignal(number) is handler
    state = checkpoints.load(folder.checkpoint)
    assert (state.epoch, state.step) == divmod(step, 3)
    assert len(log.read(folder.metrics)) == step
    assert pretrain(config, splits, folder, resume=True).finished
    assert_same_run(folder, whole)


def test_channels_last_is_another_layout_of_the_same_run(config: RunConfig, splits: Splits, whole: RunFolder) -> None:
    folder = RunFolder(whole.path.with_name("channels-last"))
    config = replace(config, channels_last=True)
    with pytest.raises(KeyboardInterrupt):
        pretrain(config, splits, folder, watch=at_step(4, lambda: signal.raise_signal(signal.SIGINT)))
    state = pretrain(config, splits, folder, resume=True)
    weights = [weight for weight in state.model.values() if weight.ndim == 4 and min(weight.shape[1:3]) > 1]
    assert weights
    assert all(weight.is_contiguous(memory_format=torch.channels_last) for weight in weights)
    undisturbed = RunFolder(whole.path.with_name("undisturbed"))
    pretrain(config, splits, undisturbed)
    assert_same_run(folder, undisturbed)
    losses = [[row["loss"] for row in measured(run)] for run in (folder, whole)]
    assert losses[0][:3] == pytest.approx(losses[1][:3], rel=1e-4)  # later ones magnify roundings


def test_a_stopped_run_on_dali_resumes_to_the_same_bits(config: RunConfig, tmp_path: Path) -> None:
    pytest.importorskip("nvidia.dali", reason="NVIDIA DALI is not installed: pip install 'fastssl[dali]'")
    for i, image in enumerate(torch.randint(0, 256, (25, 20, 30, 3), dtype=torch.uint8)):
        Image.fromarray(image.numpy()).save(tmp_path / f"{i:02}.png")
    config = replace(config, data=str(tmp_path), engine="dali")
    splits = load(config.data, size=config.image_size)
    whole, stopped, on_native = (RunFolder(tmp_path / name) for name in ("whole", "stopped", "native"))
    pretrain(config, splits, whole)
    with pytest.raises(KeyboardInterrupt, match="stopped after step 4 of 9"):
        pretrain(config, splits, stopped, watch=at_step(4, lambda: signal.raise_signal(signal.SIGINT)))
    with pytest.raises(UserError, match="engine: dali -> native"):
        pretrain(replace(config, engine="native"), splits, stopped, resume=True)
    assert pretrain(config, splits, stopped, resume=True).finished
    assert_same_run(stopped, whole)
    pretrain(replace(config, engine="native"), splits, on_native)
    assert [row["loss"] for row in measured(on_native)] != [row["loss"] for row in measured(whole)]


def test_a_stopped_run_on_streamed_files_resumes_to_the_same_bits(config: RunConfig, tmp_path: Path) -> None:
    for i, image in enumerate(torch.randint(0, 256, (25, 20, 30, 3), dtype=torch.uint8)):
        Image.fromarray(image.numpy()).save(tmp_path / f"{i:02}.png")
    config = replace(config, data=str(tmp_path), engine="stream")
    streamed, loaded = stream(config.data, size=16), load(config.data, size=16)
    whole, stopped, in_memory, on_native = (RunFolder(tmp_path / name) for name in ("a", "b", "c", "d"))
    pretrain(config, streamed, whole)
    with pytest.raises(KeyboardInterrupt, match="stopped after step 4 of 9"):
        pretrain(config, streamed, stopped, watch=at_step(4, lambda: signal.raise_signal(signal.SIGINT)))
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith(("make", "batch"))]
    assert pretrain(config, streamed, stopped, resume=True).finished
    assert_same_run(stopped, whole)
    pretrain(config, loaded, in_memory)
    assert measured(in_memory) == measured(whole)
    pretrain(replace(config, engine="native"), loaded, on_native)
    assert [row["loss"] for row in measured(on_native)] != [row["loss"] for row in measured(whole)]


@pytest.mark.filterwarnings("ignore:.*cannot be read")
@pytest.mark.parametrize("step", [2, 4])
def test_a_run_stopped_while_images_are_decoded_on_the_way_resumes_to_the_same_bits(
    step: int, config: RunConfig, tmp_path: Path
) -> None:
    for i, image in enumerate(torch.randint(0, 256, (25, 20, 30, 3), dtype=torch.uint8)):
        Image.fromarray(image.numpy()).save(tmp_path / f"{i:02}.png")
    (tmp_path / "07.png").write_bytes(b"no image")
    config = replace(config, data=str(tmp_path))
    whole, stopped, in_memory = (RunFolder(tmp_path / name) for name in ("a", "b", "c"))
    pretrain(config, load_lazily(config.data, size=16, cache=Cache(tmp_path / "kept")), whole)
    parts = Cache(tmp_path / "parts")
    stop = at_step(step, lambda: signal.raise_signal(signal.SIGINT))
    with pytest.raises(KeyboardInterrupt, match=f"stopped after step {step} of 9"):
        pretrain(config, load_lazily(config.data, size=16, cache=parts), stopped, watch=stop)
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith(("fill", "decode"))]
    assert pretrain(config, load_lazily(config.data, size=16, cache=parts), stopped, resume=True).finished
    assert_same_run(stopped, whole)
    pretrain(config, load_lazily(config.data, size=16), in_memory)
    assert_same_run(in_memory, whole)


def test_streamed_files_that_changed_are_refused_when_a_run_is_resumed(config: RunConfig, tmp_path: Path) -> None:
    for i, image in enumerate(torch.randint(0, 256, (25, 20, 30, 3), dtype=torch.uint8)):
        Image.fromarray(image.numpy()).save(tmp_path / f"{i:02}.png")
    config, folder = replace(config, data=str(tmp_path), engine="stream", epochs=1), RunFolder(tmp_path / "run")
    pretrain(config, stream(config.data, size=16), folder)
    (tmp_path / "00.png").rename(tmp_path / "new.png")
    with pytest.raises(UserError, match="has changed since the run began"):
        pretrain(config, stream(config.data, size=16), folder, resume=True)


class Slow(Loader):
    """Batches that are long in coming."""

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[list[torch.Tensor]]:
        for views in super().epoch(epoch, start_step):
            time.sleep(0.2)
            yield views


def test_the_share_of_a_step_that_waits_for_views_is_logged(
    config: RunConfig, splits: Splits, folder: RunFolder, whole: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines, "Loader", Slow)
    pretrain(config, splits, folder)
    for row in log.read(folder.metrics):
        assert row.waiting is not None
        assert 0.2 * row.images_per_second / 8 <= row.waiting < 1
    assert all(row.waiting is not None and 0 < row.waiting < 1 for row in log.read(whole.metrics))


def test_a_method_that_draws_numbers_resumes_to_the_same_bits(
    config: RunConfig, splits: Splits, folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = SimCLR.forward
    monkeypatch.setattr(
        SimCLR, "forward", lambda self, views: forward(self, [v + 0.1 * torch.randn_like(v) for v in views])
    )
    whole = RunFolder(folder.path.with_name("whole"))
    pretrain(config, splits, whole)
    with pytest.raises(KeyboardInterrupt):
        pretrain(config, splits, folder, watch=at_step(5, lambda: signal.raise_signal(signal.SIGINT)))
    pretrain(config, splits, folder, resume=True)
    assert_same_run(folder, whole)


def test_a_killed_run_resumes_from_the_last_epoch(
    config: RunConfig, splits: Splits, folder: RunFolder, whole: RunFolder
) -> None:
    def die() -> None:
        raise SystemError

    with pytest.raises(SystemError):
        pretrain(config, splits, folder, watch=at_step(5, die))
    assert len(log.read(folder.metrics)) == 5
    pretrain(config, splits, folder, resume=True)
    assert_same_run(folder, whole)


def test_a_second_signal_stops_at_once(config: RunConfig, splits: Splits, folder: RunFolder) -> None:
    def twice() -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt) as stop:
        pretrain(config, splits, folder, watch=at_step(5, twice))
    assert "stopped after" not in str(stop.value)
    assert checkpoints.load(folder.checkpoint).epoch == 1


def test_a_finished_run_resumes_to_itself(config: RunConfig, splits: Splits, whole: RunFolder) -> None:
    before = whole.metrics.read_text()
    assert pretrain(config, splits, whole, resume=True).finished
    assert whole.metrics.read_text() == before


def test_resuming_with_what_changes_the_result_is_refused(config: RunConfig, splits: Splits, whole: RunFolder) -> None:
    before = whole.checkpoint.read_bytes()
    with pytest.raises(UserError, match=r"other settings \(epochs: 3 -> 4; optim\.lr: 0\.05 -> 0\.1\)"):
        pretrain(replace(config, epochs=4, optim=replace(config.optim, lr=0.1)), splits, whole, resume=True)
    other = replace(splits, train=replace(splits.train, images=255 - splits.train.images))
    with pytest.raises(UserError, match="noise has changed since the run began"):
        pretrain(config, other, whole, resume=True)
    assert whole.checkpoint.read_bytes() == before


def test_a_folder_with_a_run_is_kept(config: RunConfig, splits: Splits, whole: RunFolder) -> None:
    before = whole.checkpoint.read_bytes()
    with pytest.raises(UserError, match="holds a run: --resume continues it, --overwrite replaces it"):
        pretrain(config, splits, whole)
    with pytest.raises(UserError, match="exclude each other"):
        pretrain(config, splits, whole, resume=True, overwrite=True)
    assert whole.checkpoint.read_bytes() == before


def test_overwriting_replaces_the_run_and_leaves_foreign_files(
    config: RunConfig, splits: Splits, whole: RunFolder
) -> None:
    whole.scores.write_text("old")
    whole.report.write_text("old")
    whole.scores_on("others").write_text("old")
    notes = whole.path / "notes.txt"
    notes.write_text("mine")
    pretrain(replace(config, epochs=1), splits, whole, overwrite=True)
    assert configs.read(whole.config).epochs == 1
    assert len(log.read(whole.metrics)) == 3
    assert not whole.scores.exists()
    assert not whole.report.exists()
    assert not whole.scores_on("others").exists()
    assert notes.read_text() == "mine"


def test_overwriting_keeps_the_old_run_when_the_new_one_cannot_start(
    config: RunConfig,
    splits: Splits,
    whole: RunFolder,
    limit_files: Callable[[int], AbstractContextManager[None]],
) -> None:
    before = {file: file.read_bytes() for file in whole.path.iterdir()}
    with pytest.raises(UserError, match="larger than the data set"):
        pretrain(replace(config, batch_size=26), splits, whole, overwrite=True)
    with limit_files(10_000), pytest.raises(UserError, match="free some space"):
        pretrain(config, splits, whole, overwrite=True)
    assert {file: file.read_bytes() for file in whole.path.iterdir()} == before


def few(images: ImageSet, count: int) -> ImageSet:
    return images.subset(torch.arange(count))


def test_what_cannot_start_writes_nothing(config: RunConfig, splits: Splits, folder: RunFolder) -> None:
    with pytest.raises(UserError, match="1 training image: training needs at least 2"):
        pretrain(config, replace(splits, train=few(splits.train, 1)), folder)
    with pytest.raises(UserError, match="batch of 8 is larger than the data set of 7 images"):
        pretrain(config, replace(splits, train=few(splits.train, 7)), folder)
    with pytest.raises(UserError, match="unknown device 'toaster'"):
        pretrain(replace(config, device="toaster"), splits, folder)
    assert not folder.path.exists()


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan, math.inf])
def test_an_impossible_temperature_is_refused(temperature: float) -> None:
    with pytest.raises(UserError, match="temperature"):
        configs.from_dict({"simclr": {"temperature": temperature}})


def test_a_loss_that_is_not_finite_stops_the_run(config: RunConfig, splits: Splits, folder: RunFolder) -> None:
    diverging = replace(config, epochs=9, optim=OptimConfig(lr=1e30, warmup_epochs=0))
    with pytest.raises(UserError, match=r"the loss is (nan|inf) at step \d+ \(epoch \d, learning rate .*--optim\.lr"):
        pretrain(diverging, splits, folder)
    assert all(p.isfinite().all() for p in checkpoints.load(folder.checkpoint).model.values())


def test_weights_that_overflow_do_not_replace_a_good_checkpoint(
    config: RunConfig, splits: Splits, folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def overflow(self: SimCLR, progress: float) -> None:
        if progress > 0.3:  # from the last step of the first epoch
            self.encoder.conv1.weight.data.fill_(math.inf)

    monkeypatch.setattr(SimCLR, "after_step", overflow)
    with pytest.raises(UserError, match="weights are not finite"):
        pretrain(config, splits, folder)
    state = checkpoints.load(folder.checkpoint)
    assert state.epoch == 0
    assert all(p.isfinite().all() for p in state.model.values())


def test_a_disk_that_fills_up_keeps_the_run_resumable(
    config: RunConfig,
    splits: Splits,
    folder: RunFolder,
    whole: RunFolder,
    limit_files: Callable[[int], AbstractContextManager[None]],
) -> None:
    room = limit_files(len(whole.metrics.read_bytes()) // 2)
    with pytest.raises(UserError, match="cannot write"):
        pretrain(config, splits, folder, watch=at_step(3, room.__enter__))
    room.__exit__(None, None, None)
    assert not [file for file in folder.path.iterdir() if file.suffix == ".tmp"]
    pretrain(config, splits, folder, resume=True)
    assert_same_run(folder, whole)


def test_rows_tell_schedule_bound_and_knn(whole: RunFolder) -> None:
    rows = log.read(whole.metrics)
    assert [(row.step, row.epoch) for row in rows] == [(i, (i + 2) // 3) for i in range(1, 10)]
    assert max(row.lr for row in rows) == rows[3].lr == 0.05
    assert rows[0].lr < rows[1].lr < rows[2].lr
    assert rows[8].lr < rows[7].lr < rows[3].lr
    for row in rows:
        assert row.extra["mutual_information_bound"] == pytest.approx(math.log(15) - row.loss)
        assert row.images_per_second > 0
    assert [row.step for row in rows if row.knn is not None] == [6, 9]
    assert rows[8].knn is not None
    assert 0.5 < rows[8].knn <= 1


def test_the_online_knn_tells_how_far_it_is(config: RunConfig, splits: Splits, folder: RunFolder) -> None:
    told: list[tuple[int, int]] = []
    pretrain(config, splits, folder, watch_knn=lambda *done: told.append(done))
    assert splits.test is not None
    known, every = len(splits.train), len(splits.train) + len(splits.test)
    assert told == 2 * [(known, every), (every, every)]


def test_weight_decay_is_scheduled_and_logged(config: RunConfig, splits: Splits, folder: RunFolder) -> None:
    decaying = replace(config, optim=replace(config.optim, weight_decay=0.01, final_weight_decay=0.1))
    state = pretrain(decaying, splits, folder)
    logged = [row.extra["weight_decay"] for row in log.read(folder.metrics)]
    expected = [0.1 - 0.09 * (1 + math.cos(math.pi * step / 9)) / 2 for step in range(9)]
    assert logged == pytest.approx(expected)
    assert [group["weight_decay"] for group in state.optimizer["param_groups"]] == [logged[-1], 0.0]


def test_without_labels_nothing_is_evaluated(config: RunConfig, unlabelled: Splits, folder: RunFolder) -> None:
    assert pretrain(config, unlabelled, folder).finished
    assert {row.knn for row in log.read(folder.metrics)} == {None}


def test_training_learns(config: RunConfig, splits: Splits, folder: RunFolder) -> None:
    # batches of 8 are noisy: a small rate, and the means of 15 steps, which fall by 0.2 nats with every seed tried
    pretrain(replace(config, epochs=30, optim=replace(config.optim, lr=0.003)), splits, folder)
    losses = [row.loss for row in log.read(folder.metrics)]
    assert sum(losses[-15:]) / 15 < sum(losses[:15]) / 15 - 0.1


def test_bfloat16_trains_float32_weights(config: RunConfig, splits: Splits, folder: RunFolder) -> None:
    # 32 pixels: on 1 x 1 maps oneDNN's bfloat16 gradient of a strided convolution reads memory that it never wrote.
    exact = replace(config, image_size=32, epochs=1)
    state = pretrain(replace(exact, precision="bfloat16"), splits, folder)
    assert {p.dtype for p in state.model.values()} == {torch.float32, torch.int64}
    other = RunFolder(folder.path.with_name("exact"))
    pretrain(exact, splits, other)
    low, high = ([row["loss"] for row in measured(f)] for f in (folder, other))
    assert low != high
    assert low[0] == pytest.approx(high[0], rel=0.05)


def test_the_process_is_left_as_it_was(config: RunConfig, splits: Splits, folder: RunFolder) -> None:
    threads, rng = torch.get_num_threads(), torch.get_rng_state()
    pretrain(replace(config, epochs=1, threads=2 if threads == 1 else 1), splits, folder)
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.get_rng_state(), rng)


def test_build_method_depends_on_the_seed_alone(config: RunConfig) -> None:
    torch.rand(3)
    one, same, other = (build_method(c).encoder.state_dict() for c in (config, config, replace(config, seed=1)))
    assert_same(one, same)
    assert not torch.equal(one["conv1.weight"], other["conv1.weight"])


class Watched(SimCLR):
    """Counts what it is shown before training, and keeps it as a method does."""

    def __init__(self, encoder: torch.nn.Module, config: Any) -> None:
        super().__init__(encoder, config)
        self.register_buffer("images", torch.zeros((), dtype=torch.int64))
        self.register_buffer("mean", torch.zeros(()))

    def prepare(self, batches: Iterable[list[torch.Tensor]]) -> None:
        first = next(iter(batches))
        self.mean += first[0].mean()
        self.images += len(first[0]) + sum(len(views[0]) for views in batches)


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastssl.methods.get", lambda _name: Watched)


@pytest.mark.usefixtures("watched")
def test_a_method_sees_the_first_epochs_views_once_before_the_first_step(
    config: RunConfig, splits: Splits, folder: RunFolder
) -> None:
    with pytest.raises(KeyboardInterrupt):
        pretrain(config, splits, folder, watch=at_step(2, lambda: signal.raise_signal(signal.SIGINT)))
    state = pretrain(config, splits, folder, resume=True)
    assert state.model["images"] == 24
    views = next(iter(Loader(splits.train, config.view_plan(), config.batch_size, config.seed).epoch(0)))
    assert torch.equal(state.model["mean"], views[0].mean())


@pytest.mark.usefixtures("watched")
def test_a_run_stopped_before_its_first_step_writes_nothing(
    config: RunConfig, splits: Splits, folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare = Watched.prepare

    def interrupted(self: Watched, batches: Iterable[list[torch.Tensor]]) -> None:
        signal.raise_signal(signal.SIGINT)
        prepare(self, batches)

    monkeypatch.setattr(Watched, "prepare", interrupted)
    with pytest.raises(KeyboardInterrupt, match="stopped before the first step: nothing was written"):
        pretrain(config, splits, folder)
    assert not folder.path.exists()
