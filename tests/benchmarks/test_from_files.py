"""The benchmark of ways from files to views: every provider makes all views of all files."""

from __future__ import annotations

import functools
import importlib

import pytest
import torch
from other_libraries import load_or_skip

from benchmarks import harness
from benchmarks.data import _dali, from_files
from benchmarks.elsewhere import Elsewhere
from fastssl.data import dali, plans
from fastssl.errors import UserError

MAKERS = from_files.MAKERS


@pytest.mark.parametrize("name", MAKERS)
def test_a_call_makes_every_view_of_every_file(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    skip_without(name)
    monkeypatch.setattr(from_files, "BATCH", 4)
    plan = plans.dino(32, local_views=2)
    work = MAKERS[name](plan, 8)
    assert work() == work() == 2 * plan.total
    assert harness.backend(work) in ("cpu", "reference")


def skip_without(name: str) -> None:
    try:
        if "dali" in name.lower():
            dali.require()
    except UserError as missing:
        pytest.skip(str(missing))
    if "torchvision" in name:
        load_or_skip("torchvision.transforms.v2")


@pytest.mark.slow
@pytest.mark.parametrize("name", [harness.OURS, "torchvision on Pillow, 2 workers"])
def test_a_provider_is_made_and_called_in_a_process_of_its_own(name: str) -> None:
    """There it serves the case; what it says of its backend and returns comes back."""
    skip_without(name)
    (case,) = (case for case in from_files.cases() if case.shape.startswith("SimCLR"))
    assert {each.func for each in case.providers.values()} == {Elsewhere}
    assert {each: make.args[0].func for each, make in case.providers.items()} == {
        each: getattr(make, "func", make) for each, make in MAKERS.items()
    }
    work = Elsewhere(functools.partial(MAKERS[name], plans.simclr(8), from_files.BATCH))
    assert work() == work() == 2
    assert harness.backend(work) in ("cpu", "reference")


def test_what_a_provider_raises_there_is_raised_here() -> None:
    with pytest.raises(ModuleNotFoundError, match="no_such_package"):
        Elsewhere(functools.partial(importlib.import_module, "no_such_package"))


@pytest.mark.parametrize("decode_each_crop", [False, True])
def test_the_views_of_dalis_own_operators_are_those_of_the_plan(decode_each_crop: bool) -> None:
    """Not to the pixel, but of their sizes, in their range, and each step as often as it should be."""
    skip_without("dali")
    paths = sorted(from_files.folder(8).iterdir()) * 16
    plan = plans.changed(plans.dino(32, local_views=2), {"second": {"solarize": 1.0}, "local": {"grayscale": 1.0}})
    epoch = _dali.batches(plan, paths, 128, decode_each_crop=decode_each_crop)
    (views,), (again,) = epoch(0), epoch(1)
    assert [tuple(view.shape) for view in views] == [(128, 3, size, size) for size in plan.sizes]
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (plan.mean, plan.std))
    first, second, *local = (view * std + mean for view in views)
    assert min(view.min() for view in (first, second, *local)) > -1e-4
    assert max(view.max() for view in (first, second, *local)) < 1 + 1e-4
    assert not torch.equal(views[0], again[0])
    grey = [float((view.amax(1) - view.amin(1)).amax((1, 2)).lt(0.02).float().mean()) for view in (first, *local)]
    assert 0.1 < grey[0] < 0.35
    assert grey[1:] == [1.0, 1.0]
    assert second.max() < 0.51
