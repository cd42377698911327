"""Images to test on that cannot be read are known while the first steps are trained, whatever is scored and when."""

from __future__ import annotations

import signal
import threading
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import replace
from pathlib import Path

import pytest
from image_files import encode, noise, write_tree

from fastssl.data import rows, sources
from fastssl.data.images import ImageSet, load_lazily, stream
from fastssl.errors import UserError
from fastssl.train import checkpoint as checkpoints
from fastssl.train import log
from fastssl.train.config import RunConfig
from fastssl.train.folder import RunFolder
from fastssl.train.interrupt import StopRequest
from fastssl.train.loop import Progress, pretrain
from fastssl.train.trial import Trial

pytestmark = pytest.mark.filterwarnings("ignore:.*cannot be read")


def source(folder: Path, bad: int) -> str:
    names = [f"{split}/{kind}/{i}.png" for split in ("train", "test") for kind in "ab" for i in range(12)]
    files = {name: encode(noise(seed=i)) for i, name in enumerate(names)}
    files |= {f"test/a/{i}.png": b"no image" for i in range(bad)}
    return str(write_tree(folder, files))


class Slow:
    """A disk from which a trial reads nothing until it may.

    Attributes:
        begun: set when it would read the first file.
        go_on: set when it is closed, or by the test.
        read: the files that it read.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.begun, self.go_on, self.read = threading.Event(), threading.Event(), list[Path]()
        self._read_file, slow = sources._read_file, self

        class Pool(ThreadPoolExecutor):
            def shutdown(self, *args: bool, **kwargs: bool) -> None:
                slow.go_on.set()
                super().shutdown(*args, **kwargs)

        monkeypatch.setattr(sources, "_read_file", self._read)
        monkeypatch.setattr("fastssl.train.trial.ThreadPoolExecutor", Pool)

    def _read(self, file: Path) -> bytes:
        if threading.current_thread().name.startswith("try"):
            self.begun.set()
            assert self.go_on.wait(60)
            self.read.append(file)
        return self._read_file(file)


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> Slow:
    return Slow(monkeypatch)


@pytest.fixture
def trials(monkeypatch: pytest.MonkeyPatch) -> list[Trial]:
    """Those that runs begin."""
    begun: list[Trial] = []

    class Noted(Trial):
        def __init__(self, images: ImageSet | None) -> None:
            super().__init__(images)
            begun.append(self)

    monkeypatch.setattr("fastssl.train.loop.Trial", Noted)
    return begun


@pytest.mark.parametrize("read", [load_lazily, stream])
def test_they_are_named_before_anything_is_scored(
    read, trials: list[Trial], config: RunConfig, folder: RunFolder, tmp_path: Path
) -> None:
    splits = read(source(tmp_path / "pets", 2), size=16)
    named: list[int] = []

    def watch(progress: Progress) -> None:
        assert trials[0].wait(StopRequest())
        named.append(len(splits.train.skipped))

    pretrain(replace(config, epochs=1, eval_every=0), splits, folder, watch=watch)
    assert named == [2, 2, 2]


def test_of_too_many_of_them_and_a_stop_in_one_step_the_stop_counts(
    trials: list[Trial], config: RunConfig, folder: RunFolder, tmp_path: Path
) -> None:
    def watch(progress: Progress) -> None:
        assert not trials[0].wait(StopRequest())
        signal.raise_signal(signal.SIGINT)

    splits = load_lazily(source(tmp_path / "pets", 6), size=16)
    with pytest.raises(KeyboardInterrupt, match="stopped after step 1 of 9"):
        pretrain(replace(config, eval_every=0), splits, folder, watch=watch)
    assert checkpoints.load(folder.checkpoint).step == 1


def test_too_many_of_them_that_are_met_when_the_online_knn_is_due_cost_no_step(
    slow: Slow, config: RunConfig, folder: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def waited(futures: list[Future[object]], timeout: float) -> None:
        slow.go_on.set()
        wait(futures, timeout)

    monkeypatch.setattr("fastssl.train.trial.wait", waited)
    splits = load_lazily(source(tmp_path / "pets", 6), size=16)
    with pytest.raises(UserError, match="too many unreadable files: 5 so far, 4 of 48 allowed"):
        pretrain(replace(config, eval_every=1), splits, folder)
    assert [row.knn for row in log.read(folder.metrics)] == [None] * 3
    state = checkpoints.load(folder.checkpoint)
    assert (state.epoch, state.step) == (1, 0)


def test_too_many_of_them_end_the_run_early(
    trials: list[Trial], config: RunConfig, folder: RunFolder, tmp_path: Path
) -> None:
    def watch(progress: Progress) -> None:
        assert not trials[0].wait(StopRequest())

    splits, unscored = load_lazily(source(tmp_path / "pets", 6), size=16), replace(config, eval_every=0)
    with pytest.raises(UserError, match="too many unreadable files: 5 so far, 4 of 48 allowed"):
        pretrain(unscored, splits, folder, watch=watch)
    assert len(log.read(folder.metrics)) == 1
    lenient = load_lazily(source(tmp_path / "pets", 6), size=16, max_skipped=0.2)
    assert pretrain(replace(unscored, max_skipped=0.2), lenient, folder, resume=True).finished
    assert len(log.read(folder.metrics)) == 9


def test_what_was_tried_is_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    splits = stream(source(tmp_path, 1), size=16)
    trial = Trial(splits.test)
    assert trial.wait(StopRequest())
    trial.close()
    assert [item.name for item in splits.train.skipped] == ["test/a/0.png"]
    monkeypatch.setattr(rows, "read_each", None)
    assert splits.test is not None
    assert len(splits.test.readable()) == 23


def test_it_ends_after_the_file_that_is_read_when_it_is_left(slow: Slow, tmp_path: Path) -> None:
    trial = Trial(load_lazily(source(tmp_path, 0), size=16).test)
    assert slow.begun.wait(60)
    trial.check()
    trial.close()
    trial.check()
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith(("try", "decode"))]
    assert len(slow.read) == 1


def test_the_online_knn_does_not_wait_for_it_if_a_stop_is_requested(
    slow: Slow, config: RunConfig, folder: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def waited(*args: object) -> None:
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr("fastssl.train.trial.wait", waited)
    splits = load_lazily(source(tmp_path / "pets", 0), size=16)
    with pytest.raises(KeyboardInterrupt, match="stopped after step 3 of 6"):
        pretrain(replace(config, epochs=2, eval_every=1), splits, folder)
    assert [row.knn for row in log.read(folder.metrics)] == [None] * 3
    assert len(slow.read) == 1
    monkeypatch.undo()
    pretrain(replace(config, epochs=2, eval_every=1), splits, folder, resume=True)
    assert [row.knn is None for row in log.read(folder.metrics)] == [True] * 5 + [False]


def test_without_images_to_test_on_there_is_nothing_to_try() -> None:
    trial = Trial(None)
    assert trial.wait(StopRequest())
    trial.close()
