"""Other libraries' losses at a test's sizes: what is timed of theirs and of ours is the same loss, call after call."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from other_libraries import skipped_if_missing

from benchmarks import harness
from benchmarks.harness import OURS, Case
from benchmarks.whole import facebook, lightly, open_clip, pml, solo

CASES: dict[str, Callable[[], Case]] = {
    "lightly, SimCLR": lambda: lightly.simclr(6, 5),
    "lightly, MoCo": lambda: lightly.moco(6, 20, 5),
    "lightly, DINO": lambda: lightly.dino(3, 7),
    "open_clip": lambda: open_clip.clip(6, 5),
    "facebook, DINO": lambda: facebook.dino(3, 7),
    "facebook, MoCo": lambda: facebook.moco(6, 20, 5),
    "facebook, MAE's masking": lambda: facebook.masking(3, 12, 5),
    "facebook, MAE's loss": lambda: facebook.pixels(2, 48),
    "pml, SimCLR": lambda: pml.simclr(6, 5),
    "solo-learn, SimCLR": lambda: solo.simclr(6, 5),
    "solo-learn, MoCo": lambda: solo.moco_v2(6, 20, 5),
}


@pytest.mark.parametrize("name", CASES)
def test_ours_and_theirs_are_the_same_loss_with_the_same_gradients(name: str) -> None:
    case = CASES[name]()
    exact = case.exact()
    for provider, make in case.providers.items():
        if provider.startswith("torch.compile"):
            continue
        with skipped_if_missing():
            work = make()
        for _ in range(3):  # what a call leaves behind must not change the next
            for got, want in zip(work(), exact, strict=True):
                torch.testing.assert_close(got.double(), want.double(), rtol=1e-5, atol=1e-6, msg=f"{provider}: {want}")


def test_theirs_stands_next_to_ours_and_is_timed_twice() -> None:
    for case in (case for name in harness.WHOLE for case in harness.cases(name)):
        ours, theirs, again, compiled = case.providers
        assert (ours, again, compiled) == (OURS, f"{theirs} again", f"torch.compile, {theirs}")
        assert case.op in harness.WHOLE
        assert case.peak
