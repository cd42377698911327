"""The benchmark of ways from files to views: every provider makes all views of all files."""

from __future__ import annotations

import pytest

from benchmarks import harness, rivals
from benchmarks.data import from_files
from fastssl.data import dali, plans
from fastssl.errors import UserError


@pytest.mark.parametrize("make", [from_files.by_dali, from_files.by_stream, from_files.by_torchvision])
def test_a_call_makes_every_view_of_every_file(make, monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        if make is from_files.by_dali:
            dali.require()
        if make is from_files.by_torchvision:
            rivals.load("torchvision.transforms.v2")
    except (UserError, rivals.NotInstalledError) as missing:
        pytest.skip(str(missing))
    monkeypatch.setattr(from_files, "BATCH", 4)
    plan = plans.dino(32, local_views=2)
    work = make(plan, 8)
    assert work() == work() == 2 * plan.total
    assert harness.backend(work) in ("cpu", "reference")
