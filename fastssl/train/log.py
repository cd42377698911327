"""The metrics of a run: one row a step, as JSON lines and as CSV with the same columns."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from types import TracebackType
from typing import TextIO

from fastssl.errors import UserError
from fastssl.files import atomic_write
from fastssl.train.folder import RunFolder

# step and epoch count from 1; loss and bounds are in nats; null where nothing was measured.
Row = dict[str, float | int | None]


def read(path: Path) -> list[Row]:
    """The rows of a ``metrics.jsonl``; a last line that a killed process left unfinished is not a row."""
    rows: list[Row] = []
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []:
        if line.endswith("\n"):
            rows.append(json.loads(line))
    return rows


class MetricsLog:
    """Appends rows to ``metrics.jsonl`` and ``metrics.csv``; every row is on disk when `write` returns.

    Args:
        folder: of the run.
        steps: rows to keep from an earlier process; the steps after it are computed anew.
    """

    def __init__(self, folder: RunFolder, *, steps: int) -> None:
        kept = [row for row in read(folder.metrics) if (row["step"] or 0) <= steps]
        with atomic_write(folder.metrics) as json_file, atomic_write(folder.table) as csv_file:
            json_file.write_text("".join(map(_json_line, kept)), encoding="utf-8")
            csv_file.write_text("".join(_csv_lines(row, header=i == 0) for i, row in enumerate(kept)), encoding="utf-8")
        self._files: list[TextIO] = [p.open("a", encoding="utf-8", newline="") for p in (folder.metrics, folder.table)]

    def write(self, row: Row) -> None:
        """Appends one row, whose keys are those of every other.

        Raises:
            UserError: if the disk is full; no half line is left.
        """
        table = self._files[1]
        for file, line in zip(self._files, (_json_line(row), _csv_lines(row, header=table.tell() == 0)), strict=True):
            _append(file, line)

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for file in self._files:
            file.close()


def _json_line(row: Row) -> str:
    return json.dumps(row) + "\n"


def _csv_lines(row: Row, *, header: bool) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, row, lineterminator="\n")
    if header:
        writer.writeheader()
    writer.writerow(row)
    return text.getvalue()
