"""``python -m benchmarks.gpu``: builds, tests, checks and measures the GPU kernels on the NVIDIA GPU of this machine.

Stages: build, tests, memcheck, benchmarks, ledger (with pages of the results). What is done is kept in --out as it
comes: a run that ends early is continued by the same command, and nothing is done twice for the same sources.
docs/benchmarking.md tells the rest.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from pathlib import Path

import torch

from benchmarks import where
from benchmarks.gpu import check, processes
from benchmarks.gpu.stages import STAGES
from fastssl.errors import UserError


def positive(word: str) -> float:
    """Of the command line: a number above 0."""
    number = float(word)
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"must be above 0; got {word}")
    return number


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument(
        "--out", type=Path, default=Path("build/gpu"), help="folder of results and ledger (%(default)s)"
    )
    parser.add_argument("--minutes", type=positive, default=8.0, help="for all stages together (%(default)s)")
    parser.add_argument("--only", choices=[*(stage.name for stage in STAGES), "ledger"], help="one stage")
    parser.add_argument("--max-autotune", action="store_true", help="rivals compiled so too: a minute or so a case")
    parser.add_argument("--dry-run", action="store_true", help="all stages on a CPU, with all but the kernels")
    parser.add_argument("--adopt", type=Path, metavar="FOLDER", help="copy a check's results into the repository")
    options = parser.parse_args()
    start = time.monotonic()

    def say(line: str) -> None:
        print(f"[{time.monotonic() - start:6.1f} s] {line}", flush=True)

    try:
        if options.adopt is not None:
            for path in check.adopt(options.adopt):
                say(f"written: {path}")
            say("now run python -m benchmarks.publish, which tells of it in README.md and docs/")
            return 0
        if not options.dry_run and not torch.cuda.is_available():
            raise UserError("torch finds no GPU here; --dry-run goes through the stages without one")
        processes.end_with_this_one()
        if options.max_autotune:
            where.search()
        say(check.date_and_device(options.dry_run))
        fine = check.run(options.out, options.minutes, options.only, options.dry_run, say)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    right = "all is right, but no kernel ran: this was a dry run" if options.dry_run else "all is right"
    say(right if fine else "not all is right or done: see above")
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())
