"""What a call takes of memory, wherever it takes it."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch

from benchmarks import memory
from benchmarks.harness import Case, Work


class Heavy(torch.utils.data.Dataset[int]):
    """40 MiB for a moment, in whichever process."""

    def __len__(self) -> int:
        return 3

    def __getitem__(self, i: int) -> int:
        return len(np.ones(40 << 20, np.uint8))


def loaded(workers: int) -> Work:
    loader = torch.utils.data.DataLoader(Heavy(), num_workers=workers, persistent_workers=workers > 0)
    return lambda: list(loader)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux keeps the mark")
@pytest.mark.parametrize(("provider", "megabytes"), [("here", 40), ("two workers", 80)])
def test_what_workers_take_is_counted(
    provider: str, megabytes: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    case = Case("op", "shape", "float32", {"here": lambda: loaded(0), "two workers": lambda: loaded(2)})
    monkeypatch.setattr(memory, "cases", lambda _: [case])
    memory.main("op", case.name, provider, str(torch.get_num_threads()))
    assert 0.8 * megabytes < float(capsys.readouterr().out) < 1.5 * megabytes + 20
