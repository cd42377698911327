"""``fastssl pretrain``: from images to an encoder, its scores and its report."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from fastssl import methods, models, report
from fastssl.cli import console, drawing, reading
from fastssl.cli.parser import Parser
from fastssl.cli.plan_options import add_plan_options, early, early_plan
from fastssl.cli.scoring import score
from fastssl.data import engines, plans
from fastssl.data.audio import Recordings
from fastssl.data.files import TooManySkippedError
from fastssl.data.images import Splits
from fastssl.data.media import Data
from fastssl.data.plans import ViewPlan
from fastssl.data.rows import Decoded
from fastssl.data.webdataset import InShards
from fastssl.errors import UserError
from fastssl.train import checkpoint as checkpoints
from fastssl.train import config as configs
from fastssl.train.config import RunConfig
from fastssl.train.folder import RunFolder
from fastssl.train.loop import pretrain, stopped
from fastssl.train.trained import open_run

DESCRIPTION = """\
Train an encoder on images without labels. Labels, where the folders name classes, are used only to score it.

METHOD is one of: {methods}. Encoders: {encoders}.
Presets of --views: {views};
`fastssl views` draws them.
DATA may be the embedded set (clipart), a folder, zip or tar of images (one folder a class, or train/ and test/, or no
order at all), WebDataset shards, or a folder of MNIST-like idx files. Methods that take videos are given a folder of
video files or of folders of frames; those that take recordings, one of wav, flac or aiff files.

The output folder gets config.yaml, metrics.jsonl and .csv, checkpoint.pt, scores.json and report.html. Ctrl-C stops
after the step in progress; --resume goes on and ends at the very same weights.
"""

EXAMPLES = """\
  fastssl pretrain simclr
  fastssl pretrain simclr --data photos --image_size 96 --epochs 100 --out runs/photos
  fastssl pretrain simclr --stem cifar --width 32 --optim.lr 0.3 --simclr.temperature 0.2
  fastssl pretrain simclr --views moco_v2 --plan.crop_scale 0.4 1.0 --plan.blur 0.1
  fastssl pretrain --out runs/photos --resume
  fastssl pretrain --config runs/photos/config.yaml --seed 1 --out runs/photos-1
"""


def run(words: list[str]) -> int:
    """The command. Raises UserError for whatever cannot be used, KeyboardInterrupt when it is stopped."""
    config, folder, options = _arguments(words)
    resume, overwrite = options["resume"], options["overwrite"]
    cache = reading.cache(options["no_cache"], options["cache_limit"])
    folder.check(resume=resume, overwrite=overwrite)
    engines.require(config.engine)
    again = f"fastssl pretrain --out {shlex.quote(str(folder.path))} --resume"
    with _locked(folder, config, resume=resume), reading.loaded(config, cache) as data:
        console.describe_data(data, config.data, reported=not report.missing())
        console.describe_sizes(config)
        known = len(reading.skipped(data))
        reading.try_some(data)
        try:
            with console.TrainingDisplay(_ready(data)) as display:
                pretrain(
                    config,
                    data,
                    folder,
                    resume=resume,
                    overwrite=overwrite,
                    watch=display.watch,
                    watch_knn=display.watch_knn,
                )
            display.trained(config.epochs)
            drawn = _finish(folder, data)
            console.sum_up(reading.skipped(data), known, console.IN_REPORT if drawn else console.ABOVE)
        except TooManySkippedError as error:
            begun = folder.checkpoint.exists() and not overwrite
            raise UserError(f"{error}; go on with: {again} --max_skipped SHARE" if begun else str(error)) from None
        except KeyboardInterrupt as stop:
            raise KeyboardInterrupt(f"{str(stop) or 'interrupted'}; go on with: {again}") from None
    return 0


@contextmanager
def _locked(folder: RunFolder, config: RunConfig, *, resume: bool) -> Iterator[None]:
    """Holds the lock of the folder. A run that goes on with other settings is refused before data is read, and kept."""
    with folder.lock():
        if resume:
            stopped(folder, config)
        yield


def _ready(data: Data) -> Callable[[], tuple[int, int]] | None:
    """How many images are read and of how many, if each is decoded, and kept, when it is first asked for."""
    parts = [data.train, data.test] if isinstance(data, Splits) else []
    lazy = [part.images for part in parts if part is not None and isinstance(part.images, Decoded)]
    return (lambda: (sum(rows.read() for rows in lazy), sum(map(len, lazy)))) if lazy else None


def _finish(folder: RunFolder, data: Data) -> bool:
    """Scores and report, and whether that was drawn. The run is complete already: a missing extra costs it alone."""
    trained = open_run(folder.path)
    evaluate = f"fastssl evaluate {shlex.quote(str(folder.path))} --data"
    labelled = isinstance(data, Splits) and data.test is not None and data.test.labels is not None
    if isinstance(data, Splits):
        with console.reading(trained.config.data) as progress:
            data = data.readable(progress)
    if isinstance(data, Recordings):
        print(
            f"not scored: take the encoder of waveforms out by fastssl export {folder.path} --out encoder.safetensors"
        )
    elif not isinstance(data, Splits):
        print(f"not scored: give labelled images to {evaluate}")
    elif labelled and data.test is not None:
        score(trained, data, folder.scores)
    elif labelled:
        print("not scored: none of the test images can be read")
    elif isinstance(data.train.images, InShards):
        print(f"not scored: no labels are read from shards: give labelled images to {evaluate}")
    else:
        print(f"not scored: the images have no labels (folders that name classes): give labelled ones to {evaluate}")
    if isinstance(data, Recordings):  # a report shows images
        return False
    try:
        drawing.draw(trained, data)
    except ImportError as error:
        print(f"no report: {error}, then: fastssl report {folder.path}", file=sys.stderr)
        return False
    print(f"report: {folder.report}")
    return True


def _arguments(words: list[str]) -> tuple[RunConfig, RunFolder, dict[str, Any]]:
    """What to run, where, and how: whether to resume or overwrite, and what of the cache."""
    method, words = (words[0], words[1:]) if words and not words[0].startswith("-") else (None, words)
    base = _base(method, words)
    values = _parser(base, _plan(base, words)).parse(words).as_dict()
    out, _ = values.pop("out"), values.pop("config")
    options = {name: values.pop(name) for name in ("resume", "overwrite", "no_cache", "cache_limit")}
    config = configs.from_dict({"method": base.method, **values})
    folder = RunFolder(Path(out) if out else _usual_folder(config.method, config.data))
    return config, folder, options


def _base(method: str | None, words: list[str]) -> RunConfig:
    """The settings that the options change: those of the run to resume, of a file, or the defaults."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--config", type=Path)
    parser.add_argument("--data", default=RunConfig.data)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--resume", action="store_true")
    try:
        known, _ = parser.parse_known_args(words)
    except argparse.ArgumentError as error:
        raise UserError(str(error).removeprefix("argument ")) from error
    if method is not None:
        methods.get(method)  # refuses one that there is not, before a file is blamed for it
    folder = RunFolder(known.out or _usual_folder(method or RunConfig.method, known.data))
    base = RunConfig()
    if known.config is not None:
        base = configs.read(known.config, method)
    elif known.resume:
        base = configs.from_dict(checkpoints.load(folder.checkpoint).config)
    return base if method is None else configs.with_method(base, method)


def _plan(base: RunConfig, words: list[str]) -> ViewPlan:
    """The plan whose parts the options may name, with the changes of ``base`` where it can be changed so."""
    views = early(words, "--views", base.views)
    own = plans.eval if base.modality == "audio" else methods.get(base.method).view_plan  # of waveforms there are none
    plan = early_plan(words, own if views in (None, "null") else plans.get(views), base.image_size)
    with suppress(UserError):
        return plans.changed(plan, base.plan)
    return plan


def _usual_folder(method: str, data: str) -> Path:
    return Path("runs") / f"{method}-{Path(data).absolute().stem}"


def _parser(base: RunConfig, plan: ViewPlan) -> Parser:
    registries = {"methods": methods, "encoders": models, "views": plans}
    description = DESCRIPTION.format(**{name: ", ".join(registry.names()) for name, registry in registries.items()})
    parser = Parser("pretrain [METHOD] [options]", description, EXAMPLES)
    parser.add_argument("--out", type=str | None, help="folder of the run; without it runs/METHOD-DATA")
    parser.add_argument("--resume", action="store_true", help="continue the run in --out, with its settings")
    parser.add_argument("--overwrite", action="store_true", help="replace the run in --out")
    parser.add_argument(
        "--config", type=str | None, help="YAML of settings, as in a run's config.yaml; options given beside it win"
    )
    reading.add_cache_options(parser)
    parser.add_class_arguments(RunConfig, skip={"method", "method_config", "plan"})
    add_plan_options(parser, plan, base.plan)
    parser.add_class_arguments(type(base.method_config), base.method)
    defaults: dict[str, Any] = configs.flat(base)
    del defaults["method"]
    parser.set_defaults(defaults)
    return parser
