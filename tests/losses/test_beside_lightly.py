"""lightly's names on two processes against lightly's own: what DistributedDataParallel makes of both, step by step."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.multiprocessing
from beside_lightly import LOSSES, process
from other_libraries import load_or_skip
from whole_and_parts import EXACT


@pytest.mark.slow
def test_losses_gradients_and_what_is_remembered_are_lightlys(tmp_path: Path) -> None:
    load_or_skip("lightly.loss")
    torch.multiprocessing.spawn(process, (2, str(tmp_path)), nprocs=2)
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt")
        assert found.keys() == {*LOSSES, "batch_shuffle"}
        for name, (theirs, ours) in found.items():
            for i, (got, want) in enumerate(zip(ours, theirs, strict=True)):
                torch.testing.assert_close(got, want, **EXACT, msg=lambda m, n=name, i=i: f"{n}, {i}: {m}")
        *_, back, batch = found["batch_shuffle"][1]
        assert torch.equal(back, batch)
