"""Fine-tuning a run's encoder, case by case, so that what is done is never lost: behind ``fastssl evaluate``."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fastssl.cli import console
from fastssl.data.images import Splits
from fastssl.errors import UserError
from fastssl.eval import FinetuneConfig, tuning
from fastssl.eval.tuning import Bench, Protocol, Result
from fastssl.files import atomic_write
from fastssl.train.reproduce import fingerprint, reproducible, resolve_device
from fastssl.train.trained import Trained


def tune(trained: Trained, splits: Splits, path: Path, protocol: Protocol, seeds: int, config: FinetuneConfig) -> None:
    """Does the cases of ``protocol`` that ``path`` does not have yet, writes each there as JSON, and prints the table.

    Results of other settings, of other images or of the run as it was at another step are replaced.

    Raises:
        UserError: if the images have no labels, or ``path`` holds something else.
    """
    run = trained.config
    settings = {
        "finetune": asdict(config),
        "image_size": run.image_size,
        "data": fingerprint(splits.train.images),
        "trained": {"epoch": trained.checkpoint.epoch, "step": trained.checkpoint.step},
    }
    cases = tuning.cases(protocol, trained.encoder, seeds)
    done = _read(path, settings)
    with reproducible(run.seed, run.threads), trained.folder.lock(), console.TuningDisplay(len(cases)) as display:
        bench = Bench(
            trained.encoder,
            trained.random_encoder(),
            splits,
            size=run.image_size,
            config=config,
            device=resolve_device(run.device),
            checkpoint=trained.folder.tuning,
        )
        for case in cases:
            if case not in done:
                display.begin(case)
                done[case] = bench.run(case, display.watch)
                _write(path, settings, splits, list(done.values()))
            display.end(done[case])
    console.show_tuned(tuning.lines(done[case] for case in cases), test_images=len(splits.test or ()))
    print(f"fine-tuning: {path}")


def _read(path: Path, settings: dict[str, Any]) -> dict[tuning.Case, Result]:
    """What is there of the same settings."""
    if not path.exists():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        results = [tuning.from_dict(row) for row in found["rows"]]
        return {result.case: result for result in results} if found["settings"] == settings else {}
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error}): remove it, and fine-tune again") from error


def _write(path: Path, settings: dict[str, Any], splits: Splits, results: list[Result]) -> None:
    told = {
        "settings": settings,
        "classes": len(splits.train.classes),
        "test_images": len(splits.test or ()),
        "rows": [result.to_dict() for result in results],
    }
    with atomic_write(path) as partial:
        partial.write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")
