"""What a call takes of memory, wherever it takes it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

# in a process of its own: one that has lived has memory to give again, and hands that on to its workers
MEASURE = """
import sys
import numpy as np, torch
from benchmarks import memory
from benchmarks.harness import Case

class Heavy(torch.utils.data.Dataset):
    def __len__(self):
        return 3
    def __getitem__(self, i):
        return len(np.ones(40 << 20, np.uint8))

def loaded(workers):
    loader = torch.utils.data.DataLoader(Heavy(), num_workers=workers, persistent_workers=workers > 0)
    return lambda: list(loader)

case = Case("op", "shape", "float32", {"0": lambda: loaded(0), "2": lambda: loaded(2)})
memory.cases = lambda op: [case]
memory.main("op", case.name, sys.argv[1], "1")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux keeps the mark")
@pytest.mark.parametrize(("workers", "megabytes"), [(0, 40), (2, 80)])
def test_what_workers_take_is_counted(workers: int, megabytes: int) -> None:
    command = [sys.executable, "-c", MEASURE, str(workers)]
    path = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=path)
    assert 0.8 * megabytes < float(done.stdout) < 1.5 * megabytes + 20
