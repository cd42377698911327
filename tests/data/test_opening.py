from __future__ import annotations

import threading
from pathlib import Path

import pytest
import torch

from fastssl.data.decode import UnreadableError
from fastssl.data.opening import open_all, refuse_too_many
from fastssl.data.sources import Skipped
from fastssl.errors import UserError


def test_files_are_opened_on_threads_in_order_and_what_cannot_be_is_named() -> None:
    threads: set[int] = set()
    together = threading.Barrier(min(2, torch.get_num_threads()), timeout=60)

    def opened(name: str, path: Path) -> str:
        threads.add(threading.get_ident())
        if name in ("0", "1"):
            together.wait()
        if name == "5":
            raise UnreadableError("no good")
        return f"{name} {path}"

    skipped: list[Skipped] = []
    at: list[tuple[int, int]] = []
    files = [(str(i), Path(f"{i}.x")) for i in range(9)]
    found = open_all(files, opened, skipped, lambda *done: at.append(done))
    assert found == [(i, f"{i} {i}.x") for i in range(9) if i != 5]
    assert skipped == [Skipped("5", "no good")]
    assert at == [(i, 9) for i in range(1, 10)]
    assert len(threads) <= torch.get_num_threads()


def test_a_share_is_allowed_and_always_one() -> None:
    bad = [Skipped(str(i), "no good") for i in range(3)]
    refuse_too_many(bad[:1], 5, 0.0, "odd files", "mend them")
    refuse_too_many(bad, 30, 0.1, "odd files", "mend them")
    with pytest.raises(UserError, match=r"too many odd files: 3 of 29, 2 allowed \('0': no good; .*\): mend them"):
        refuse_too_many(bad, 29, 0.1, "odd files", "mend them")
    with pytest.raises(UserError, match="from 0 to 1; got 7"):
        refuse_too_many([], 29, 7, "odd files", "mend them")
