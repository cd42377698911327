"""The pictures and words in docs/views are those of the plans as they are."""

from __future__ import annotations

import runpy
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastssl.data import plans

DOCS = Path(__file__).parents[2] / "docs"
SCRIPT = runpy.run_path(str(DOCS / "draw_views.py"))


def test_the_page_tells_every_preset_as_it_is() -> None:
    assert (DOCS / "views.md").read_text(encoding="utf-8") == SCRIPT["page"]()  # else: python docs/draw_views.py


def test_there_is_a_small_picture_of_every_preset_and_no_other() -> None:
    files = sorted((DOCS / "views").iterdir())
    assert [file.stem for file in files] == plans.names()
    assert max(file.stat().st_size for file in files) < 150_000


@pytest.mark.parametrize("name", plans.names())
def test_a_picture_is_what_its_preset_draws(name: str) -> None:
    drawn = np.asarray(SCRIPT["picture"](name)).astype(int)
    with Image.open(DOCS / "views" / f"{name}.jpg") as kept:
        assert abs(np.asarray(kept).astype(int) - drawn).mean() < 4  # what JPEG loses
