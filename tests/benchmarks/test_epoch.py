"""The benchmark of an epoch in memory: every provider makes all views of all images."""

from __future__ import annotations

import pytest
import torch
from other_libraries import skipped_if_missing

from benchmarks import harness
from benchmarks.data import epoch
from fastssl.data import plans

MAKERS = {name: make.func for name, make in epoch.cases()[0].providers.items()}


@pytest.mark.parametrize("name", MAKERS)
def test_a_call_makes_every_view_of_every_image(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(epoch, "BATCH", 4)
    plan = plans.simclr(epoch.SIDE)
    with skipped_if_missing():
        work = MAKERS[name](plan, 12)
    made: list[list[torch.Tensor]] = []
    batches = work._epoch
    work._epoch = lambda number: (made.append(views) or views for views in batches(number))
    assert work() == 3 * plan.total
    assert [tuple(view.shape) for views in made for view in views] == [(4, 3, 32, 32)] * 6
    assert harness.backend(work) in ("cpu", "reference")


def test_the_case_leaves_no_image_out() -> None:
    (case,) = epoch.cases()
    for make in case.providers.values():
        assert make.args == (plans.simclr(32), 50_000)
    assert epoch.IMAGES % epoch.BATCH == 0
