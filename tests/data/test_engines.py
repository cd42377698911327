from __future__ import annotations

from pathlib import Path

import pytest
import torch
from dali_helpers import needs_dali
from image_files import plain, write_tree

from fastssl.data import engines, plans
from fastssl.data.images import load_all
from fastssl.errors import UserError

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    "engine", [pytest.param(name, marks=needs_dali if name == "dali" else ()) for name in engines.NAMES]
)
def test_every_engine_serves_batches_of_the_plan(engine, tmp_path: Path) -> None:
    data = load_all(str(write_tree(tmp_path, {f"{i}.png": plain() for i in range(5)})), size=8)
    engines.require(engine)
    loader = engines.open_loader(engine, data, plans.byol(4), 2, 0, CPU)
    assert [[view.shape for view in views] for views in loader.epoch(0)] == [[(2, 3, 4, 4)] * 2] * 2
    loader.close()


@needs_dali
def test_files_are_closed_where_an_engine_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = load_all(str(write_tree(tmp_path, {"a.png": plain()})), size=8)
    closed: list[bool] = []
    real = engines.files_of

    def files_of(*given: object) -> object:
        found = real(*given)
        found.listing.close = lambda: closed.append(True)
        return found

    monkeypatch.setattr(engines, "files_of", files_of)
    with pytest.raises(UserError, match="a batch of 2 is larger"):
        engines.open_loader("dali", data, plans.byol(4), 2, 0, CPU)
    assert closed == [True]
