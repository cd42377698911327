"""The metrics of a run: one row a step, as JSON lines and as CSV with the same columns."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from fastssl.errors import UserError
from fastssl.files import atomic_write
from fastssl.train.folder import RunFolder


@dataclass(frozen=True)
class Row:
    """What was measured at one step.

    Attributes:
        step: steps done, from 1.
        epoch: the epoch it belongs to, from 1.
        lr: learning rate.
        loss: of the batch, before the step.
        images_per_second: images of the batch over the time of the step, data and augmentation included.
        seconds: training time since the run began, evaluations left out.
        waiting: share of the step's time, in [0, 1], that it waited for its views; None in rows of older versions.
        knn: accuracy of the online kNN in [0, 1], where it was evaluated.
        extra: what is scheduled beside the learning rate, the method's own numbers (`fastssl.methods.Method.metrics`),
            and in the first of every `fastssl.train.health.EVERY` steps signs of a collapse.
    """

    step: int
    epoch: int
    lr: float
    loss: float
    images_per_second: float
    seconds: float
    waiting: float | None = None
    knn: float | None = None
    extra: Mapping[str, float] = field(default_factory=dict)

    def flat(self) -> dict[str, Any]:
        """The columns of the files; the method's own numbers stand last."""
        values = asdict(self)
        extra: dict[str, float] = values.pop("extra")
        return values | extra


def share_waiting(rows: Sequence[Row]) -> float | None:
    """The share of the time of all ``rows`` that was spent waiting for views; None if not all of them tell."""
    seconds = [1 / row.images_per_second for row in rows]  # of an image
    waited = [row.waiting * each for row, each in zip(rows, seconds, strict=True) if row.waiting is not None]
    return sum(waited) / sum(seconds) if waited and len(waited) == len(rows) else None


def read(path: Path) -> list[Row]:
    """The rows of a ``metrics.jsonl``; a last line that a killed process left unfinished is not a row.

    Raises:
        UserError: if another line is not a row.
    """
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    try:
        return [_row(json.loads(line)) for line in lines if line.endswith("\n")]
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is damaged ({error}): remove it; the run's checkpoint does not need it") from error


class MetricsLog:
    """Appends rows to ``metrics.jsonl`` and ``metrics.csv``; a row is in both files when `write` returns.

    Args:
        folder: of the run.
        steps: rows to keep from an earlier process; what it did after that step is computed anew.
    """

    def __init__(self, folder: RunFolder, *, steps: int) -> None:
        self._json, self._csv = folder.metrics, folder.table
        kept = [row for row in read(self._json) if row.step <= steps]
        self._columns = list(kept[0].flat()) if kept else []  # the first step has all that any has
        with atomic_write(self._json) as partial:
            partial.write_text("".join(map(_json_line, kept)), encoding="utf-8")
        with atomic_write(self._csv) as partial:
            partial.write_text("".join(_csv_line(row, self._columns) for row in kept), encoding="utf-8")

    def write(self, row: Row) -> None:
        """Appends one row.

        Raises:
            UserError: if the file system refuses; no half line is left.
        """
        _append(self._json, _json_line(row))
        self._columns = self._columns or list(row.flat())
        _append(self._csv, _csv_line(row, self._columns))


def _row(values: dict[str, Any]) -> Row:
    own = {item.name for item in fields(Row)}
    extra = {name: value for name, value in values.items() if name not in own}
    return Row(**{name: value for name, value in values.items() if name in own}, extra=extra)


def _json_line(row: Row) -> str:
    return json.dumps(row.flat()) + "\n"


def _csv_line(row: Row, columns: Sequence[str]) -> str:
    """The row, empty where nothing was measured; the first of a run has the names of the columns above it."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, extrasaction="ignore", lineterminator="\n")
    if row.step == 1:
        writer.writeheader()
    writer.writerow(row.flat())
    return text.getvalue()


def _append(path: Path, line: str) -> None:
    size = path.stat().st_size
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(line)
    except OSError as error:
        os.truncate(path, size)
        raise UserError(f"cannot write {path}: {error.strerror}; free some space and go on with --resume") from error
