"""``python -m benchmarks.demo``: what `make demo` learns, over three seeds, and how long it takes."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.harness import circumstances
from fastssl.files import atomic_write

CONFIG = Path(__file__).parent / "demo.yaml"
RESULT = Path(__file__).parent / "results" / "demo.json"
SEEDS = (0, 1, 2)


def run(seed: int, folder: Path) -> dict[str, Any]:
    """One run of the command that `make demo` gives, in a process of its own."""
    command = [
        *(sys.executable, "-m", "fastssl", "pretrain", "simclr", "--config", str(CONFIG)),
        *("--seed", str(seed), "--out", str(folder)),
    ]
    start = time.perf_counter()
    subprocess.run(command, check=True)
    seconds = time.perf_counter() - start
    scores = json.loads((folder / "scores.json").read_text())
    accuracy = {row["features"]: {key: row[key] for key in ("knn", "linear")} for row in scores["rows"]}
    gain = accuracy["trained"]["knn"] - accuracy["random initialisation"]["knn"]
    return {
        "seed": seed,
        "seconds_with_evaluation_and_report": round(seconds, 1),
        "knn_gain_over_random_initialisation_in_points": round(100 * gain, 2),
        "accuracy": accuracy,
        "majority": scores["majority"],
    }


def main() -> None:
    argparse.ArgumentParser(prog="python -m benchmarks.demo", description=__doc__).parse_args()
    with tempfile.TemporaryDirectory() as folder:
        runs = [run(seed, Path(folder) / str(seed)) for seed in SEEDS]
    report = {
        "command": "python -m benchmarks.demo",
        "config": CONFIG.read_text(),
        "run": circumstances(),
        "rows": runs,
    }
    with atomic_write(RESULT) as path:
        path.write_text(json.dumps(report, indent=1) + "\n")
    print(
        f"{RESULT}: gains of {', '.join(str(r['knn_gain_over_random_initialisation_in_points']) for r in runs)} points"
    )


if __name__ == "__main__":
    main()
