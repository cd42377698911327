from __future__ import annotations

import csv
import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace

import pytest

from fastssl.errors import UserError
from fastssl.train import log
from fastssl.train.folder import RunFolder
from fastssl.train.log import MetricsLog, Row


def rows(count: int) -> list[Row]:
    return [
        Row(i, 1, lr=0.1, loss=2 / i, images_per_second=9.0, seconds=i, knn=0.5 if i == 3 else None, extra={"bound": i})
        for i in range(1, count + 1)
    ]


def test_both_files_hold_every_row(folder: RunFolder) -> None:
    metrics = MetricsLog(folder, steps=0)
    for row in rows(4):
        metrics.write(row)
    assert log.read(folder.metrics) == rows(4)
    with folder.table.open() as file:
        table = list(csv.DictReader(file))
    assert [int(line["step"]) for line in table] == [1, 2, 3, 4]
    assert [line["knn"] for line in table] == ["", "", "0.5", ""]
    assert list(table[0]) == list(json.loads(folder.metrics.read_text().splitlines()[0]))


def test_what_only_some_steps_measure_is_empty_in_the_others(folder: RunFolder) -> None:
    sparse = [replace(row, extra={"rank": row.step, "bound": 1} if row.step % 2 else {"bound": 1}) for row in rows(4)]
    metrics = MetricsLog(folder, steps=0)
    for row in sparse[:2]:
        metrics.write(row)
    metrics = MetricsLog(folder, steps=2)
    for row in sparse[2:]:
        metrics.write(row)
    assert log.read(folder.metrics) == sparse
    with folder.table.open() as file:
        table = list(csv.DictReader(file))
    assert [(line["rank"], line["bound"]) for line in table] == [("1", "1"), ("", "1"), ("3", "1"), ("", "1")]


def test_rows_of_older_versions_tell_nothing_of_waiting(folder: RunFolder) -> None:
    metrics = MetricsLog(folder, steps=0)
    for row in rows(2):
        metrics.write(row)
    lines = [json.loads(line) for line in folder.metrics.read_text().splitlines()]
    for line in lines:
        del line["waiting"]
    folder.metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert log.read(folder.metrics) == rows(2)
    assert log.share_waiting(log.read(folder.metrics)) is None


def test_the_share_of_waiting_is_of_time_and_not_of_steps() -> None:
    fast = Row(1, 1, lr=0.1, loss=1.0, images_per_second=30.0, seconds=1.0, waiting=1.0)
    slow = Row(2, 1, lr=0.1, loss=1.0, images_per_second=10.0, seconds=4.0, waiting=0.0)
    assert log.share_waiting([fast, slow]) == pytest.approx(0.25)
    assert log.share_waiting([]) is None


def test_rows_after_the_checkpoint_are_dropped(folder: RunFolder) -> None:
    metrics = MetricsLog(folder, steps=0)
    for row in rows(4):
        metrics.write(row)
    metrics = MetricsLog(folder, steps=2)
    metrics.write(rows(3)[-1])
    assert log.read(folder.metrics) == rows(3)
    assert len(folder.table.read_text().splitlines()) == 4


def test_a_line_cut_off_by_a_kill_is_not_a_row(folder: RunFolder) -> None:
    metrics = MetricsLog(folder, steps=0)
    for row in rows(2):
        metrics.write(row)
    folder.metrics.write_text(folder.metrics.read_text()[:-5])
    assert log.read(folder.metrics) == rows(1)


def test_a_full_disk_leaves_no_half_line(
    folder: RunFolder, limit_files: Callable[[int], AbstractContextManager[None]]
) -> None:
    metrics = MetricsLog(folder, steps=0)
    metrics.write(rows(1)[0])
    size = folder.metrics.stat().st_size
    with limit_files(size + 10), pytest.raises(UserError, match=r"cannot write .*metrics\.jsonl: .*--resume"):
        metrics.write(rows(2)[1])
    assert folder.metrics.stat().st_size == size
    metrics.write(rows(2)[1])
    assert log.read(folder.metrics) == rows(2)
