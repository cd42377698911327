"""What the commands show in a terminal. Progress goes to stderr, results to stdout."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from types import TracebackType

from rich import box
from rich.console import Console, RenderableType
from rich.progress import BarColumn, ProgressColumn, SpinnerColumn, Task, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.table import Column, Table
from rich.text import Text

from fastssl.data.audio import Recordings
from fastssl.data.clips import ClipSet
from fastssl.data.images import Skipped, Splits
from fastssl.data.media import Data
from fastssl.data.reading import counted
from fastssl.data.video import FrameFolder, Video
from fastssl.eval import Pretext, Scores
from fastssl.eval import tuning as tunings
from fastssl.eval.protocol import RANDOM, TRAINED
from fastssl.eval.tracking import TrackScores
from fastssl.train.config import RunConfig
from fastssl.train.loop import Progress
from fastssl.train.throughput import EngineSpeed, Throughput

SHOWN_SKIPPED = 5
IN_REPORT, ABOVE = "all named in the report", "named above"

_err = Console(stderr=True, highlight=False)
_out = Console(highlight=False)


@contextmanager
def counting(doing: str, what: str = "images", *, often: int = 10) -> Iterator[Callable[[int, int], None]]:
    """A bar of images, or ``what`` else, drawn so ``often`` a second; yields the callback (done, total) to move it."""
    column = Column(overflow="fold")  # a path may be long
    columns = (TextColumn("{task.description}", markup=False, table_column=column), BarColumn(), _Count(what))
    shown = _err.is_terminal
    with Bar(*columns, console=_err, transient=True, disable=not shown, refresh_per_second=often) as bar:
        task = bar.add_task(doing, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


class _BarBelow(Bar):
    """What is being done in a line, or in two where it is long, and the bar below, which leaves its numbers whole."""

    def get_renderables(self) -> Iterator[RenderableType]:
        for task in self.tasks:
            yield Text(f"{task.description} {task.fields.get('numbers', '')}".rstrip())
        yield self.make_tasks_table(self.tasks)


def _whole() -> Column:
    """A column of a bar that is never broken or cut; the bar is, where there is no room."""
    return Column(no_wrap=True)


def _time_left() -> tuple[ProgressColumn, ProgressColumn]:
    return TimeRemainingColumn(table_column=_whole()), TextColumn("left", table_column=_whole())


class _Count(ProgressColumn):
    """How many are done, once it is known of how many."""

    def __init__(self, what: str) -> None:
        super().__init__(_whole())
        self._what = what

    def render(self, task: Task) -> Text:
        return Text("" if task.total is None else f"{int(task.completed)}/{int(task.total)} {self._what}")


def reading(source: str, what: str = "images") -> AbstractContextManager[Callable[[int, int], None]]:
    """A bar of images, or ``what`` else, read; yields the callback (done, total) that moves it."""
    return counting(f"reading {source}", what)


def busy(what: str) -> AbstractContextManager[object]:
    """A spinner beside ``what``."""
    bar = Bar(
        SpinnerColumn(), TextColumn("{task.description}"), console=_err, transient=True, disable=not _err.is_terminal
    )
    bar.add_task(what, total=None)
    return bar


def tell(line: str) -> None:
    """A line above whatever bar is shown, unbroken, so that a path in it can be copied."""
    _err.print(line, markup=False, soft_wrap=True)


def describe_data(data: Data, source: str, *, reported: bool) -> None:
    """One line on what was read, and a few on what was skipped, of which a report names all if there is to be one."""
    if isinstance(data, Splits):
        train, test = data.train, data.test
        labelled = f", {len(test):,} for testing, {len(train.classes)} classes" if test is not None else ", no labels"
        found, skipped = f"{counted(len(train), 'image')} for training{labelled}", train.skipped
    elif isinstance(data, ClipSet):
        found, skipped = f"{counted(len(data), 'clip')} of {_videos(data.videos)}", data.skipped
    else:
        found, skipped = f"{counted(len(data), 'recording')} at {data.rate} Hz", data.skipped
    _err.print(f"{source}: {found}", markup=False, soft_wrap=True)
    describe_skipped(skipped, IN_REPORT if reported and not isinstance(data, Recordings) else None)


def _videos(videos: Sequence[Video]) -> str:
    """How many; of folders of images, which may be photographs as well, what they were taken for."""
    told = counted(len(videos), "video")
    if not isinstance(videos[0], FrameFolder):
        return told
    least, most = min(map(len, videos)), max(map(len, videos))
    frames = counted(most, "frame") if least == most else f"{least:,} to {counted(most, 'frame')}"
    return f"{told} of {frames}, each a folder of images"


def describe_sizes(config: RunConfig) -> None:
    """Says so where the views are not as large as the images."""
    if config.modality == "audio":  # no images
        return
    size, of = config.view_plan().size, config.image_size
    if size != of:
        tell(
            f"trained on views of {size} x {size} pixels, scored on images of {of} x {of}: plan.size is not image_size"
        )


def describe_skipped(skipped: Sequence[Skipped], where_all_are: str | None = None) -> None:
    """How many files were skipped, and why: the first few, or all if nothing else names them."""
    shown = skipped if where_all_are is None else skipped[:SHOWN_SKIPPED]
    if shown:
        _err.print(f"skipped {len(skipped)} that cannot be read:", markup=False)
    for file in shown:
        _err.print(f"  {file.name}: {file.reason}", markup=False, soft_wrap=True)
    if len(skipped) > len(shown):
        _err.print(f"  and {len(skipped) - len(shown)} more, {where_all_are}", markup=False)


def sum_up(skipped: Sequence[Skipped], known: int, where: str) -> None:
    """How many files were skipped, if they are more than the ``known`` ones that were told of; ``where`` all are named.

    The others were named when they were met.
    """
    if len(skipped) > known:
        _err.print(f"skipped {len(skipped)} that cannot be read, {where}", markup=False)


class _Ready(ProgressColumn):
    """How many images are read, until all are: looked up once a second, whether steps are done or not."""

    def __init__(self, ready: Callable[[], tuple[int, int]]) -> None:
        super().__init__(_whole())
        self._ready, self._next, self._text = ready, 0.0, ""

    def render(self, task: Task) -> Text:
        if time.monotonic() >= self._next:
            done, total = self._ready()
            self._text = f"{done:,} of {total:,} images read" if done < total else ""
            self._next = time.monotonic() + 1
        return Text(self._text)


class TrainingDisplay:
    """A live bar over the whole run, and one lasting line for each epoch.

    Args:
        ready: tells how many images are read and of how many, where that is done on the way.
    """

    def __init__(self, ready: Callable[[], tuple[int, int]] | None = None) -> None:
        columns = (BarColumn(), *_time_left()) if ready is None else (BarColumn(), *_time_left(), _Ready(ready))
        self._bar = _BarBelow(*columns, console=_err, transient=True, disable=not _err.is_terminal)
        self._waiting = self._bar.add_task("before the first step", total=None, numbers="")
        self._task: TaskID | None = None
        self._epoch, self._steps, self._seconds, self._waited = 0, 0, 0.0, 0.0  # of an image of each step so far

    def __enter__(self) -> TrainingDisplay:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def watch(self, progress: Progress) -> None:
        """`fastssl.train.loop.Watcher`: shows a step that was done."""
        row = progress.row
        if row.epoch != self._epoch:
            self._epoch, self._steps, self._seconds, self._waited = row.epoch, 0, 0.0, 0.0
        self._steps += 1
        self._seconds += 1 / row.images_per_second
        self._waited += (row.waiting or 0.0) / row.images_per_second
        epoch = f"epoch {row.epoch}/{progress.epochs}"
        speed = f"{self._steps / self._seconds:,.0f} images/s ({self._waited / self._seconds:.0%} waiting for data)"
        numbers = f"{speed}  {_told(progress)}"
        if self._task is None:
            self._bar.remove_task(self._waiting)
            self._task = self._bar.add_task(epoch, total=progress.steps, completed=row.step - 1, numbers=numbers)
        self._bar.update(self._task, completed=row.step, description=epoch, numbers=numbers)
        if progress.warning is not None:
            tell(f"warning: {progress.warning}")
        if row.step % progress.steps_per_epoch == 0:
            knn = "" if row.knn is None else f"  kNN {100 * row.knn:.1f} %"
            _err.print(f"{epoch}  {numbers}{knn}", markup=False, soft_wrap=True)

    def watch_knn(self, done: int, total: int) -> None:
        """Shows how many images the online kNN has features of."""
        if self._task is not None:
            self._bar.update(self._task, numbers=f"kNN: features of {done:,} of {total:,} images")

    def trained(self, epochs: int) -> None:
        """Says so of a run whose training was complete before: no step was shown."""
        if self._task is None:
            all_are = "the only epoch is" if epochs == 1 else f"all {epochs} epochs are"
            _err.print(f"{all_are} trained already", markup=False)


def _told(progress: Progress) -> str:
    """The loss; the bound on the mutual information of the views, or how well the pretext task is solved, if told."""
    told, extra = f"loss {progress.row.loss:.3f}", progress.row.extra
    if "constant_loss" in extra:
        told += f" (of a constant answer {extra['constant_loss']:.3f})"
    if "mutual_information_bound" in extra:
        told += f"  bound {extra['mutual_information_bound']:.3f} nats"
    if "pretext_accuracy" in extra:
        told += f"  solved {100 * extra['pretext_accuracy']:.1f} % (chance {100 * extra['chance']:.3g} %)"
    if "pretext_error" in extra:
        told += f"  error {extra['pretext_error']:.3g} (always the mean {extra['constant_error']:.3g})"
    return told


def show_scores(scores: Scores, task: Pretext | None) -> None:
    """The table of scores, with the gain over the untrained encoder, and how well the pretext task is done."""
    table = Table(
        box=box.SIMPLE_HEAD,
        title=f"Accuracy on {scores.test_images} test images, {scores.classes} classes",
        title_justify="left",
    )
    table.add_column("features")
    for name in (f"kNN (k = {scores.k})", "linear probe"):
        table.add_column(name, justify="right")
    for row in scores.rows:
        table.add_row(row.features, f"{row.knn:.1%}", f"{row.linear:.1%}")
    table.add_row("largest class", f"{scores.majority:.1%}", f"{scores.majority:.1%}")
    _out.print(table)
    trained, untrained = scores.row(TRAINED), scores.row(RANDOM)
    knn, linear = 100 * (trained.knn - untrained.knn), 100 * (trained.linear - untrained.linear)
    _out.print(f"gain over {RANDOM}: {knn:+.1f} points by kNN, {linear:+.1f} by the linear probe")
    if task is not None:
        _out.print(f"pretext task on the test images: {task.in_words()}")


class TuningDisplay:
    """A live bar over the steps of each case of fine-tuning, and one lasting line for each."""

    def __init__(self, cases: int) -> None:
        columns = (BarColumn(), *_time_left())
        self._bar = _BarBelow(*columns, console=_err, transient=True, disable=not _err.is_terminal)
        self._task = self._bar.add_task("", total=None)
        self._cases, self._done = cases, 0

    def __enter__(self) -> TuningDisplay:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def begin(self, case: tunings.Case) -> None:
        """A case that is not done yet."""
        self._bar.reset(self._task, total=None, description=f"{self._done + 1} of {self._cases}: {_case(case)}")

    def watch(self, done: int, total: int) -> None:
        """A step of it."""
        self._bar.update(self._task, completed=done, total=total)

    def end(self, result: tunings.Result) -> None:
        """A case that is done, now or by an earlier command."""
        self._done += 1
        line = f"{self._done} of {self._cases}: {_case(result.case)}: {result.accuracy:.1%}"
        _err.print(line, markup=False, soft_wrap=True)


def _case(case: tunings.Case) -> str:
    labels = f"{100 * case.labels:.3g} % of the labels"
    return f"{case.features}, {labels}, {tunings.in_words(case.tuned)}, seed {case.seed}"


def show_tuned(lines: Sequence[tunings.Line], *, test_images: int) -> None:
    """The table of fine-tuning: a row for each share of labels and depth, trained beside a random start."""
    seeds = max(line.seeds for line in lines)
    title = f"Accuracy on {counted(test_images, 'image')}, mean and standard deviation over {seeds} seeds"
    table = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left")
    for name in ("labels", "tuned"):
        table.add_column(name)
    for name in (TRAINED, RANDOM):
        table.add_column(name, justify="right")
    for first, second in zip(lines[::2], lines[1::2], strict=True):
        labels = f"{100 * first.labels:.3g} % ({counted(first.images, 'image')})"
        table.add_row(labels, tunings.in_words(first.tuned), _spread(first), _spread(second))
    _out.print(table)
    _out.print(f"all of it tuned from a {RANDOM} is supervised training")


def _spread(line: tunings.Line) -> str:
    return f"{line.mean:.1%}" + ("" if line.spread is None else f" ± {100 * line.spread:.1f}")


def show_tracking(scores: TrackScores) -> None:
    """The table of J and F, with the gain over what knows nothing of the video."""
    table = Table(
        box=box.SIMPLE_HEAD,
        title=f"Masks tracked through {scores.sequences} videos, {scores.frames} frames scored",
        title_justify="left",
    )
    table.add_column("features")
    for name in ("J&F", "J (region)", "F (boundary)"):
        table.add_column(name, justify="right")
    for row in scores.rows:
        table.add_row(row.features, *(f"{100 * value:.1f}" for value in (row.jf, row.j, row.f)))
    _out.print(table)
    for file in scores.skipped:
        _out.print(f"not scored: {file.name}: {file.reason}", markup=False, soft_wrap=True)
    gains = ", ".join(f"{100 * (scores.rows[0].jf - row.jf):+.1f} over {row.features}" for row in scores.rows[1:])
    _out.print(f"gain in J&F, points: {gains}")


def show_throughput(result: Throughput) -> None:
    """The table of engines, and what they mean for the training step."""
    config, step = result.config, result.step.median
    table = Table(
        box=box.SIMPLE_HEAD,
        title=f"{config.preset}: {counted(result.images, 'image')} to views of {config.view_plan().size} pixels, "
        f"in batches of {config.batch_size}",
        title_justify="left",
    )
    table.add_column("engine")
    for name in ("images/s", "lowest to highest", "decoding", "ready after", "peak memory"):
        table.add_column(name, justify="right")
    for engine in result.engines:
        table.add_row(engine.engine, *_measured(engine))
    _out.print(table)
    for engine in result.engines:
        if engine.cannot:
            _out.print(f"{engine.engine}: {engine.cannot}", markup=False, soft_wrap=True)
    _out.print(
        f"step: {config.encoder}, forward and backward, {step:,.3g} images/s, {config.batch_size / step:.2g} s a batch",
        markup=False,
        soft_wrap=True,
    )
    _out.print(_verdict(result), markup=False, soft_wrap=True)


def _measured(speed: EngineSpeed) -> tuple[str, ...]:
    if speed.images is None:
        return ("not here",)
    decoding = f"{100 * speed.decoding:.0f} %" if speed.decoding else "once"
    peak = "unknown" if speed.peak_megabytes is None else f"{speed.peak_megabytes:,.0f} MB"
    turns = f"{speed.images.slowest:,.0f} to {speed.images.fastest:,.0f}"
    return f"{speed.images.median:,.0f}", turns, decoding, f"{speed.ready_after:.1f} s", peak


def _verdict(result: Throughput) -> str:
    fastest = result.fastest
    assert fastest.images is not None
    times = fastest.images.median / result.step.median
    said = f"{fastest.engine} is fastest, and makes {times:,.3g} times as many images as the step can take: "
    said += f"{result.bottleneck} is the bottleneck"
    if result.environment["device"].endswith("CPU"):
        share = f"{100 / (1 + times):.0f} %" if times < 99 else "less than 1 %"
        said += f"; on one and the same processor, views take {share} of the time of a step"
    return said
