"""``python -m benchmarks.gpu.measure CASE...``: measures cases and prints a line of JSON for each when it is done."""

from __future__ import annotations

import json
import sys
from contextlib import nullcontext

from benchmarks import harness, where
from benchmarks.gpu import floors, pretend, timing


def main(names: list[str], dry: bool) -> None:
    if not dry:
        where.use("cuda")
    with pretend.gpu() if dry else nullcontext():
        found = floors.measured(64, (0.25, 1)) if dry else floors.measured()
        run = {**harness.circumstances(), "floors": found.report()}
        cases = {case.name: case for case in harness.cases()}
        for name in names:
            case = cases[name]
            if dry:
                for provider in [provider for provider in case.providers if "compile" in provider]:
                    del case.providers[provider]
            rows = timing.measure(case, found, lambda what, name=name: print(f"{name}: {what}", flush=True))
            print(json.dumps({"item": name, "result": {"op": case.op, "run": run, "rows": rows}}), flush=True)


if __name__ == "__main__":
    main([word for word in sys.argv[1:] if word != "--dry-run"], "--dry-run" in sys.argv)
