"""``python -m benchmarks.scores.digits``: cpc_audio learns from spoken digits, who speaks and what is said is probed.

The Free Spoken Digit Dataset as its authors split it: recordings 0 to 4 of each digit and speaker are held out. All
others are trained on, without labels; then the encoder is frozen, the mean of its contexts over a recording is the
feature vector, and a linear probe finds the digit and the speaker in it, on the recordings that were held out. Beside
it stands the same encoder at its random start. What is done is not done again. It ends after --minutes with what is
then done: exit code 0 if all that was asked for is, 1 if there is more to do by the same command.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import markdown
from benchmarks.harness import circumstances_of_training
from benchmarks.scores.davis import read
from benchmarks.scores.train import Clock
from fastssl.allocator import keep_freed_memory
from fastssl.data.audio import SPOKEN_DIGITS, Recordings, list_recordings
from fastssl.eval.features import evaluating
from fastssl.eval.linear import linear_probe
from fastssl.eval.protocol import RANDOM, TRAINED
from fastssl.files import atomic_write
from fastssl.train import config as configs
from fastssl.train.config import RunConfig
from fastssl.train.folder import RunFolder
from fastssl.train.loop import pretrain
from fastssl.train.reproduce import reproducible
from fastssl.train.trained import open_run

RESULT = Path(__file__).parents[1] / "results" / "digits.json"
HELD_OUT = 5  # recordings of each digit and speaker
LABELS = ("digit", "speaker")
# At 8 kHz frames of 80 samples are the paper's 10 ms; most recordings are longer than the window of 320 ms.
SETTINGS: dict[str, Any] = {
    "method": "cpc_audio",
    "media": {"samples": 2560},
    "width": 128,
    "max_stride": 80,
    "batch_size": 32,
    "epochs": 12,
    "optim": {"lr": 1e-3, "warmup_epochs": 1},
    "threads": 2,
}
READ_DIGITS = """\
`{command} --data FSDD` trains `cpc_audio` on {train:,} recordings of the Free Spoken Digit Dataset (here those of
{speakers} speakers), without labels, and probes the frozen encoder, the mean of its contexts over a recording, on the
{held_out} that its authors hold out. Accuracy of the linear probe in per cent, by seed; chance is {chances}.
"""
Row = dict[str, Any]


def run_of(data: str, seed: int) -> RunConfig:
    return configs.from_dict({**SETTINGS, "data": data, "seed": seed})


def chosen(recordings: Recordings, positions: Sequence[int]) -> Recordings:
    """Those of ``positions``."""

    def some(values: Sequence[Any]) -> tuple[Any, ...]:
        return tuple(values[i] for i in positions)

    return replace(
        recordings,
        names=some(recordings.names),
        paths=some(recordings.paths),
        lengths=some(recordings.lengths),
        heads=some(recordings.heads),
        labels={kind: labels[list(positions)] for kind, labels in recordings.labels.items()},
    )


def halves(data: str) -> tuple[Recordings, Recordings]:
    """The recordings to train on, and those that are held out."""
    found = list_recordings(data, pattern=SPOKEN_DIGITS)
    numbers = [int(PurePosixPath(name).stem.rpartition("_")[2]) for name in found.names]
    train = [i for i, number in enumerate(numbers) if number >= HELD_OUT]
    held = [i for i, number in enumerate(numbers) if number < HELD_OUT]
    return chosen(found, train), chosen(found, held)


@torch.no_grad()
def features(encoder: nn.Module, recordings: Recordings) -> Tensor:
    """(N, F) float32 of whole recordings, each by itself."""
    with evaluating(encoder):
        return torch.cat([encoder(recordings.read(i)[None]).float() for i in range(len(recordings))])


def probed(encoder: nn.Module, train: Recordings, held: Recordings, seed: int) -> dict[str, float]:
    """Accuracy of the linear probe for each kind of label, in [0, 1]."""
    known, unknown = features(encoder, train), features(encoder, held)
    return {
        kind: linear_probe(
            known,
            train.labels[kind],
            unknown,
            held.labels[kind],
            num_classes=len(train.classes[kind]),
            seed=seed,
        ).accuracy
        for kind in LABELS
    }


def row_of(data: str, seed: int, work: Path, clock: Clock) -> Row:
    """Trains and probes one seed.

    Raises:
        KeyboardInterrupt: if the minutes are over, or it is stopped; the same call goes on.
    """
    train, held = halves(data)
    config, folder = run_of(data, seed), RunFolder(work / str(seed))
    pretrain(config, train, folder, resume=folder.checkpoint.exists(), watch=clock.watch)
    trained = open_run(folder.path)
    with reproducible(seed, config.threads):
        scores = {
            TRAINED: probed(trained.encoder, train, held, seed),
            RANDOM: probed(trained.random_encoder(), train, held, seed),
        }
    return {
        "seed": seed,
        "recordings": {"train": len(train), "held_out": len(held)},
        "classes": {kind: len(train.classes[kind]) for kind in LABELS},
        "parameters": sum(p.numel() for p in trained.encoder.parameters()),
        "minutes_of_training": round(trained.checkpoint.seconds / 60, 2),
        "scores": scores,
    }


def told(rows: Sequence[Row]) -> str:
    """The table for a terminal, in per cent."""
    lines = ["seed  " + "  ".join(f"{kind}, {features}" for kind in LABELS for features in (TRAINED, RANDOM))]
    for row in rows:
        scores = (f"{100 * row['scores'][name][kind]:.1f}" for kind in LABELS for name in (TRAINED, RANDOM))
        lines.append(f"{row['seed']:4}  " + "  ".join(scores))
    return "\n".join(lines)


def settings_of(data: str) -> dict[str, Any]:
    """All that decides the rows but the seed: rows of other settings are not kept."""
    told = configs.to_dict(run_of(data, 0))
    del told["seed"]
    return {**told, "data": Path(data).name, "held_out": HELD_OUT}


def write(path: Path, settings: Mapping[str, Any], rows: Sequence[Row]) -> None:
    run = circumstances_of_training()
    ordered = sorted(rows, key=lambda row: row["seed"])
    report = {"command": "python -m benchmarks.scores.digits", "settings": settings, "run": run, "rows": ordered}
    with atomic_write(path) as partial:
        partial.write_text(json.dumps(report, indent=1) + "\n")


def section(path: Path = RESULT) -> list[str]:
    """Of results.md, once that is measured."""
    if not path.exists():
        return []
    report = json.loads(path.read_text())
    rows, names = report["rows"], (TRAINED, RANDOM)
    table = [
        [row["seed"], *(f"{100 * row['scores'][name][kind]:.1f}" for kind in LABELS for name in names)] for row in rows
    ]
    classes = rows[0]["classes"]
    read = READ_DIGITS.format(
        command=report["command"],
        **rows[0]["recordings"],
        speakers=classes["speaker"],
        chances=" and ".join(f"{100 / classes[kind]:.0f} of the {kind}" for kind in LABELS),
    )
    minutes = max(row["minutes_of_training"] for row in rows)
    return [
        "## Spoken digits: contrastive predictive coding\n",
        read,
        markdown.table_of(["seed", *(f"{kind}, {name}" for kind in LABELS for name in names)], 1, table),
        "",
        f"The longest training took {minutes:.1f} minutes; the encoder has {rows[0]['parameters']:,} parameters.\n",
        markdown.circumstances(report["run"]),
        "",
    ]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scores.digits", description=__doc__)
    parser.add_argument("--data", required=True, help="folder of the Free Spoken Digit Dataset: 7_jackson_32.wav ...")
    parser.add_argument("--seeds", type=int, default=3, help="the seeds 0, 1, 2 ...")
    parser.add_argument("--minutes", type=float, default=10.0, help="after which to stop")
    parser.add_argument("--out", type=Path, default=RESULT, help="the JSON file")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "fastssl-digits")
    options = parser.parse_args()
    keep_freed_memory()  # as the command that trains does
    settings, clock = settings_of(options.data), Clock(options.minutes)
    rows = read(options.out, settings)
    for seed in range(options.seeds):
        if any(row["seed"] == seed for row in rows):
            continue
        print(f"seed {seed}", flush=True)
        try:
            if clock.over:
                raise KeyboardInterrupt("the minutes are over")
            rows.append(row_of(options.data, seed, options.work, clock))
        except KeyboardInterrupt as stop:
            print(f"{str(stop) or 'stopped'}: the same command goes on")
            return 1
        write(options.out, settings, rows)
    print(told(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
