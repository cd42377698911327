"""``python -m benchmarks.scores.side_by_side``: our SimCLR, MoCo and DINO beside lightly's, step by step.

Both start from the same weights and are given the same views by the same loop, in turns. So are, a third time, our own
from a start that differs by one rounding of each weight: how far those losses come apart is what the same training
differs by itself. A case that is done is not done again, unless its settings change.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import markdown, rivals
from benchmarks.harness import OURS, circumstances, quantiles
from benchmarks.scores.cells import CONVNET
from benchmarks.scores.lightly_methods import lightlys
from benchmarks.scores.train import Data
from benchmarks.summary import ALIKE, RESULTS, Measured
from fastssl.data import engines
from fastssl.data.images import Splits
from fastssl.errors import UserError, unknown
from fastssl.files import atomic_write
from fastssl.methods import Method
from fastssl.optim import build_optimizer, learning_rate, set_rates, weight_decay
from fastssl.train import config as configs
from fastssl.train.config import RunConfig
from fastssl.train.loop import build_method
from fastssl.train.memory import PeakMemory
from fastssl.train.reproduce import reproducible

RESULT = RESULTS / "side_by_side.json"
THEIRS, ROUNDED = "lightly", f"{OURS}, rounded otherwise"
SIDES = (OURS, THEIRS, ROUNDED)
WARM_UP = 3  # steps that are not timed
Row = dict[str, Any]

COMMON: dict[str, Any] = {**CONVNET, "image_size": 32, "threads": 2}
SGD: dict[str, Any] = {"name": "sgd", "lr": 0.06, "weight_decay": 5e-4, "final_weight_decay": None, "warmup_epochs": 0}
DINO: dict[str, Any] = {
    "prototypes": 2048,
    "momentum": {"start": 0.99},
    "train_prototypes": {"start": 1.0, "end": 1.0},  # lightly's head freezes nothing unless it is told to
    "teacher_temp": {"start": 0.04, "end": 0.04},
}


@dataclass(frozen=True)
class Case:
    """What is trained side by side.

    Attributes:
        method: of ours and of lightly's.
        steps: how many.
        settings: of the run, as in a config file, beside those common to all.
    """

    method: str
    steps: int
    settings: dict[str, Any]

    def config(self, data: str) -> RunConfig:
        return configs.from_dict({**COMMON, "optim": SGD, "method": self.method, "data": data, **self.settings})


CASES: dict[str, Case] = {
    "simclr": Case("simclr", 100, {"batch_size": 256}),
    "simclr_2048": Case("simclr", 15, {"batch_size": 2048}),
    "moco": Case("moco", 100, {"batch_size": 256, "moco": {"queue": 16384, "batch_norm": "whole"}}),
    "dino": Case("dino", 60, {"batch_size": 128, "plan": {"local": {"views": 4}}, "dino": DINO}),
}


class Side:
    """One of those that are trained.

    Attributes:
        losses: before each step.
        seconds: of each step, from views to new weights.
    """

    def __init__(self, method: Method, config: RunConfig, steps: int) -> None:
        self._method, self._optim, self._steps = method.train(), config.optim, steps
        self._optimizer = build_optimizer(method, config.optim)
        self.losses: list[float] = []
        self.seconds: list[float] = []

    def step(self, views: list[Tensor]) -> None:
        """A step as the training loop makes it, its schedules over all the steps there will be."""
        start, step = time.perf_counter(), len(self.losses)
        when = {"total": self._steps, "per_epoch": self._steps}
        set_rates(self._optimizer, learning_rate(self._optim, step, **when), weight_decay(self._optim, step, **when))
        self._method.before_step(step, **when)
        torch.manual_seed(step)  # what the sides draw is drawn alike
        loss = self._method(views)
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self._optimizer.step()
        self._method.after_step((step + 1) / self._steps)
        self.losses.append(float(loss.detach()))
        self.seconds.append(time.perf_counter() - start)

    def told(self, provider: str) -> Row:
        timed = self.seconds[min(WARM_UP, len(self.seconds) - 2) :]
        losses = [float(f"{loss:.7g}") for loss in self.losses]
        return {"provider": provider, **quantiles(timed), "samples": len(timed), "losses": losses}


def methods_of(config: RunConfig, dtype: torch.dtype = torch.float32) -> dict[str, Method]:
    """By provider: ours, lightly's from the same start, and ours from one that a rounding moved."""
    ours = build_method(config).to(dtype)
    theirs = lightlys(ours, config.method).to(dtype)
    moved, generator = copy.deepcopy(ours), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in moved.parameters():
            up = torch.rand(p.shape, generator=generator) < 0.5
            p.mul_(torch.where(up, 1 + torch.finfo(dtype).eps, 1 - torch.finfo(dtype).eps).to(dtype))
    return {OURS: ours, THEIRS: theirs, ROUNDED: moved}


def views_of(config: RunConfig, splits: Splits) -> Iterator[list[Tensor]]:
    """Batch after batch, epoch after epoch."""
    loader = engines.open_loader(
        config.engine, splits.train, config.view_plan(), config.batch_size, config.seed, torch.device("cpu")
    )
    return (views for epoch in count() for views in loader.epoch(epoch))


def trained(
    config: RunConfig, splits: Splits, steps: int, only: Sequence[str] = SIDES, dtype: torch.dtype = torch.float32
) -> dict[str, Side]:
    """The sides after ``steps``, each step in turns, another one first each time."""
    with reproducible(config.seed, config.threads):
        sides = {name: Side(m, config, steps) for name, m in methods_of(config, dtype).items() if name in only}
        turns = list(sides.values())
        for views in islice(views_of(config, splits), steps):
            views = [view.to(dtype) for view in views]
            for side in turns:
                side.step(views)
            turns.append(turns.pop(0))
    return sides


def peak_megabytes(config: RunConfig, splits: Splits, provider: str) -> float:
    """What a step adds to the high-water mark of this process, after a first one: for a process of its own."""
    with reproducible(config.seed, config.threads):
        side = Side(methods_of(config)[provider], config, 2)
        views = next(views_of(config, splits))
        side.step(views)
        peak = PeakMemory()
        side.step(views)
    return peak.megabytes()


def in_own_process(name: str, provider: str, options: argparse.Namespace) -> float:
    """``peak_megabytes`` there, where freed memory goes back to the system at once."""
    command = [sys.executable, "-m", "benchmarks.scores.side_by_side", "--data", options.data, "--cases", name]
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    command += ["--work", str(options.work), "--peak", provider]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
    return round(float(done.stdout.split()[-1]), 1)


def settings_of(case: Case, data: Data) -> Row:
    """All that decides a case's row."""
    return {**json.loads(json.dumps(configs.to_dict(case.config(data.name)))), "steps": case.steps}


def read(path: Path = RESULT) -> dict[str, Row]:
    """The cases that are done, by name."""
    return {row["case"]: row for row in json.loads(path.read_text())["rows"]} if path.exists() else {}


def write(path: Path, rows: dict[str, Row]) -> None:
    shown = {name: value for name, value in circumstances().items() if name != "samples"}
    shown["rivals"] = {"lightly": rivals.versions()["lightly"]}
    report = {"command": "python -m benchmarks.scores.side_by_side", "run": shown, "rows": list(rows.values())}
    with atomic_write(path) as partial:
        partial.write_text(json.dumps(report, indent=1) + "\n")


READ = """\
`{command} --data CIFAR10` trains SimCLR, MoCo v2 and DINO of ours and of lightly's own heads, losses and helpers, put
together as its benchmarks do, from the same weights, on the same views, by the same loop, in turns. *Apart* is the
largest difference of the two losses at any step; *by a rounding* that of ours and ours again, from a start in which
each weight was moved by one rounding: training carries any difference on, and below that the two are the same. The end
is the mean over the last tenth of the steps. *Times faster* is of the median step, from views to new weights, **bold**
where ours is slower, *alike* where {alike}.
Memory is what a step adds to the high-water mark of a process of its own. The encoder, which is the same, takes most of
the time; both losses of each step are in
`benchmarks/results/side_by_side.json`.
"""


def section(path: Path = RESULT) -> list[str]:
    """Of docs/results.md, once something is measured."""
    rows = read(path)
    if not rows:
        return []
    report = json.loads(path.read_text())
    head = ["case", "steps", "batch", "loss at the start", "at the end, ours", "lightly's", "apart", "by a rounding"]
    head += ["ours, ms", "lightly's, ms", "times faster", "MB, ours", "lightly's"]
    return [
        "## Beside lightly: the same losses, in what time\n",
        READ.format(command=report["command"], alike=ALIKE),
        markdown.table_of(head, 1, [cells(row) for row in rows.values()]),
        "",
        markdown.circumstances(report["run"]),
        "",
    ]


def cells(row: Row) -> list[object]:
    ours, theirs, rounded = row["sides"]
    ratio, verdict = Measured(row["sides"]).against(theirs)
    faster = {"faster": f"{ratio:.2f}", "slower": f"**{ratio:.2f}**", "alike": f"{ratio:.2f} (alike)"}[verdict]
    losses = [ours["losses"][0], *(end(side["losses"]) for side in (ours, theirs))]
    differences = [apart(ours["losses"], side["losses"]) for side in (theirs, rounded)]
    times = [f"{side['median']:.0f}" for side in (ours, theirs)]
    peaks = [f"{side['peak_extra_megabytes']:,.0f}" for side in (ours, theirs)]
    told = [*(f"{loss:.4f}" for loss in losses), *(f"{difference:.1g}" for difference in differences)]
    return [row["case"], len(ours["losses"]), row["settings"]["batch_size"], *told, *times, faster, *peaks]


def apart(one: Sequence[float], other: Sequence[float]) -> float:
    """The largest difference of two curves at the same step."""
    return max(abs(a - b) for a, b in zip(one, other, strict=True))


def end(losses: Sequence[float]) -> float:
    """The mean over the last tenth."""
    return statistics.fmean(losses[-max(1, len(losses) // 10) :])


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scores.side_by_side", description=__doc__)
    parser.add_argument("--data", required=True, help="folder of CIFAR-10, or any images that fastssl takes")
    parser.add_argument("--cases", help="names, with commas between (default: all)")
    parser.add_argument("--out", type=Path, default=RESULT, help="the JSON file")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "fastssl-scores")
    parser.add_argument("--peak", choices=SIDES, help="print the MB of a step of one side, and do nothing else")
    options = parser.parse_args()
    try:
        return run(options)
    except (UserError, rivals.NotInstalledError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def run(options: argparse.Namespace) -> int:
    names = list(CASES) if options.cases is None else options.cases.split(",")
    for name in names:
        if name not in CASES:
            raise unknown("case", name, CASES)
    data, rows = Data(options.data, options.work), read(options.out)
    for name in names:
        case = CASES[name]
        settings, config = settings_of(case, data), case.config(options.data)
        splits = data.splits(config.image_size)
        if options.peak is not None:
            print(peak_megabytes(config, splits, options.peak))
            continue
        if rows.get(name, {}).get("settings") == settings:
            print(f"{name}: done")
            continue
        sides = [side.told(provider) for provider, side in trained(config, splits, case.steps).items()]
        for side in sides[:2]:
            side["peak_extra_megabytes"] = in_own_process(name, side["provider"], options)
        rows[name] = {"case": name, "settings": settings, "sides": sides}
        write(options.out, {name: rows[name] for name in CASES if name in rows})
        print(" | ".join(map(str, cells(rows[name]))), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
