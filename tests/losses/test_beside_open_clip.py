"""ClipLoss and SigLipLoss on two processes against open_clip's own: what DistributedDataParallel makes of both."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.multiprocessing
from beside_open_clip import process
from other_libraries import load_or_skip
from whole_and_parts import EXACT


@pytest.mark.slow
def test_loss_and_gradients_are_open_clips(tmp_path: Path) -> None:
    load_or_skip("open_clip.loss")
    torch.multiprocessing.spawn(process, (2, str(tmp_path)), nprocs=2)
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt")
        assert len(found) == 18
        for name, (theirs, ours) in found.items():
            assert len(theirs) == 7
            for part in theirs:
                torch.testing.assert_close(
                    ours[part], theirs[part], **EXACT, msg=lambda m, n=name, p=part: f"{n}, {p}: {m}"
                )
