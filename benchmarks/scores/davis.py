"""``python -m benchmarks.scores.davis``: video_colorization learns from half of DAVIS and tracks through the other.

The sequences take turns to be in the first half and in the second; a network is trained on the frames of each, without
their masks, and scored on the other, so that all sequences are scored by networks that never saw them. What is done is
not done again. It ends after --minutes with what is then done: exit code 0 if all that was asked for is, 1 if there is
more to do by the same command.
"""

from __future__ import annotations

import argparse
import json
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from benchmarks.harness import circumstances_of_training
from fastssl.allocator import keep_freed_memory
from fastssl.data.clips import ClipSet, list_clips
from fastssl.data.davis import FRAMES, open_davis
from fastssl.eval.protocol import RANDOM, TRAINED
from fastssl.eval.tracking import UNMOVED, TrackConfig, evaluate_tracking
from fastssl.files import atomic_write
from fastssl.train import config as configs
from fastssl.train.config import RunConfig
from fastssl.train.folder import RunFolder
from fastssl.train.loop import Progress, pretrain
from fastssl.train.reproduce import reproducible
from fastssl.train.trained import open_run

RESULT = Path(__file__).parents[1] / "results" / "davis.json"
HALVES = ("first", "second")
# Frames of 240 pixels are tracked as they are, so crops are of their own scale: 83 to 152 pixels, shown at 96; and one
# position in 4 pixels gives as many as the usual one in 8 of frames of 480.
SETTINGS: dict[str, Any] = {
    "method": "video_colorization",
    "image_size": 96,
    "plan": {"crop_scale": [0.12, 0.4]},
    "media": {"frames": 4, "stride": 2, "every": 1},
    "width": 16,
    "max_stride": 4,
    "epochs": 25,
    "optim": {"warmup_epochs": 1},
    "threads": 2,
}
TRACKING = TrackConfig()
Row = dict[str, Any]


class Clock:
    """Asks the training to stop when the minutes are over; its state is then on disk."""

    def __init__(self, minutes: float) -> None:
        self._end = time.monotonic() + 60 * minutes

    @property
    def over(self) -> bool:
        return time.monotonic() > self._end

    def watch(self, progress: Progress) -> None:
        """Of `pretrain`, which ends the step and writes a checkpoint."""
        if self.over and progress.row.step < progress.steps:
            signal.raise_signal(signal.SIGINT)


def run_of(data: str, seed: int) -> RunConfig:
    return configs.from_dict({**SETTINGS, "data": str(Path(data) / FRAMES), "seed": seed})


def clips_of(config: RunConfig, names: Sequence[str]) -> ClipSet:
    """The clips of the sequences called ``names``."""
    media = config.media
    found = list_clips(config.data, media.frames, stride=media.stride, every=media.every)
    own = tuple(clip for clip in found.clips if Path(found.videos[clip[0]].name).name in names)
    return replace(found, clips=own)


def row_of(data: str, seed: int, half: str, work: Path, clock: Clock) -> Row:
    """Trains on one half and scores on the other.

    Raises:
        KeyboardInterrupt: if the minutes are over, or it is stopped; the same call goes on.
    """
    names = [sequence.name for sequence in open_davis(data).sequences]
    begin = HALVES.index(half)
    learnt, tracked = names[begin::2], names[1 - begin :: 2]
    config, folder = run_of(data, seed), RunFolder(work / f"{half}-{seed}")
    resume = folder.checkpoint.exists()
    pretrain(config, clips_of(config, learnt), folder, resume=resume, watch=clock.watch)
    trained = open_run(folder.path)
    start = time.perf_counter()
    with reproducible(seed, config.threads):
        scores = evaluate_tracking(trained.method, trained.untrained(), open_davis(data, tracked), config=TRACKING)
    return {
        "seed": seed,
        "half": half,
        "trained_on": learnt,
        "minutes_of_training": round(trained.checkpoint.seconds / 60, 2),
        "minutes_of_scoring": round((time.perf_counter() - start) / 60, 2),
        "scores": {row.features: {"jf": row.jf, "j": row.j, "f": row.f} for row in scores.rows},
        "objects": {row.features: [asdict(item) for item in row.objects] for row in scores.rows},
    }


def overall(rows: Sequence[Row]) -> dict[int, dict[str, float]]:
    """J&F over all objects of both halves, by seed, then by features, of the seeds that have both."""
    found: dict[int, dict[str, float]] = {}
    for seed in sorted({row["seed"] for row in rows}):
        own = [row for row in rows if row["seed"] == seed]
        if len(own) == len(HALVES):
            for features in (TRAINED, RANDOM, UNMOVED):
                objects = [item for row in own for item in row["objects"][features]]
                jf = statistics.fmean((item["j"] + item["f"]) / 2 for item in objects)
                found.setdefault(seed, {})[features] = jf
    return found


def told(rows: Sequence[Row]) -> str:
    """The table for a terminal: J&F of each seed, in per cent."""
    lines = [f"seed  {TRAINED:>8}  {RANDOM}  {UNMOVED}"]
    for seed, scores in overall(rows).items():
        trained, untrained, unmoved = (100 * scores[name] for name in (TRAINED, RANDOM, UNMOVED))
        lines.append(f"{seed:4}  {trained:8.1f}  {untrained:{len(RANDOM)}.1f}  {unmoved:{len(UNMOVED)}.1f}")
    return "\n".join(lines)


def settings_of(data: str) -> dict[str, Any]:
    """All that decides the rows but the seed: rows of other settings are not kept."""
    told = configs.to_dict(run_of(data, 0))
    del told["seed"]
    return {**told, "data": f"{Path(data).name}/{FRAMES}", "tracking": asdict(TRACKING)}


def read(path: Path, settings: Mapping[str, Any]) -> list[Row]:
    if not path.exists():
        return []
    found = json.loads(path.read_text())
    rows: list[Row] = found["rows"] if found["settings"] == json.loads(json.dumps(settings)) else []
    return rows


def write(path: Path, settings: Mapping[str, Any], rows: Sequence[Row]) -> None:
    run = circumstances_of_training()
    ordered = sorted(rows, key=lambda row: (row["seed"], row["half"]))
    report = {"command": "python -m benchmarks.scores.davis", "settings": settings, "run": run, "rows": ordered}
    with atomic_write(path) as partial:
        partial.write_text(json.dumps(report, indent=1) + "\n")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scores.davis", description=__doc__)
    parser.add_argument("--data", required=True, help="folder of DAVIS: JPEGImages and Annotations")
    parser.add_argument("--seeds", type=int, default=3, help="the seeds 0, 1, 2 ...")
    parser.add_argument("--minutes", type=float, default=10.0, help="after which to stop")
    parser.add_argument("--out", type=Path, default=RESULT, help="the JSON file")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "fastssl-davis")
    options = parser.parse_args()
    keep_freed_memory()  # as the command that trains does
    settings, clock = settings_of(options.data), Clock(options.minutes)
    rows = read(options.out, settings)
    done = {(row["seed"], row["half"]) for row in rows}
    wanted = [(seed, half) for seed in range(options.seeds) for half in HALVES if (seed, half) not in done]
    for seed, half in wanted:
        print(f"seed {seed}, trained on the {half} half", flush=True)
        try:
            if clock.over:
                raise KeyboardInterrupt("the minutes are over")
            rows.append(row_of(options.data, seed, half, options.work, clock))
        except KeyboardInterrupt as stop:
            print(f"{str(stop) or 'stopped'}: the same command goes on")
            return 1
        write(options.out, settings, rows)
        shown = (f"{name} {100 * scores['jf']:.1f}" for name, scores in rows[-1]["scores"].items())
        print(f"seed {seed}, trained on the {half} half: J&F {', '.join(shown)}", flush=True)
    print(told(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
