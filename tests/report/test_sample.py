"""The views that are shown are those that an engine makes for training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from dali_helpers import needs_dali
from PIL import Image
from report_helpers import images

from fastssl.data import engines, plans
from fastssl.data.images import ImageSet, load
from fastssl.errors import UserError
from fastssl.report.sample import draw_sample

COUNT, HEIGHT, WIDTH = 5, 20, 60
ENGINES = [pytest.param(name, marks=needs_dali if name == "dali" else ()) for name in engines.NAMES]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Wide images, each of one brightness but for its red left and its blue right end."""
    for i in range(COUNT):
        pixels = np.full((HEIGHT, WIDTH, 3), 40 * i + 20, np.uint8)
        pixels[:, :15], pixels[:, -15:] = (255, 0, 0), (0, 0, 255)
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
    return tmp_path


def data(photos: Path) -> ImageSet:
    return load(str(photos), size=HEIGHT).train


@pytest.mark.parametrize("engine", ENGINES)
def test_each_view_is_beside_what_the_engine_made_it_of(engine: engines.Engine, photos: Path) -> None:
    whole = plans.ViewPlan(size=30, views=2, crop_ratio=(3.0, 3.0))
    sample = draw_sample(data(photos), whole, rows=COUNT, seed=0, engine=engine)
    assert sorted(sample.chosen.tolist()) == list(range(COUNT))
    assert len(sample.views) == len(sample.normalized) == 2
    seen = (HEIGHT, HEIGHT) if engine in engines.IN_MEMORY else (HEIGHT, WIDTH)
    for row, index in enumerate(sample.chosen.tolist()):
        assert sample.images[row].shape == (3, *seen)
        for view in sample.views:
            assert view[row, :, 15, 15].tolist() == pytest.approx([40 * index + 20] * 3, abs=2)
            red, blue = view[row, :, 15, 0].tolist(), view[row, :, 15, -1].tolist()
            ends_are_seen = red[0] > 250 > 5 > red[2] and blue[2] > 250 > 5 > blue[0]
            assert ends_are_seen == (engine not in engines.IN_MEMORY)


def test_the_views_are_drawn_alike_by_all_engines(tmp_path: Path) -> None:
    for i in range(COUNT):
        noise = np.random.default_rng(i).integers(0, 256, (HEIGHT, HEIGHT, 3), dtype=np.uint8)
        Image.fromarray(noise).save(tmp_path / f"{i}.png")
    native, stream = (
        draw_sample(data(tmp_path), plans.simclr(HEIGHT), rows=COUNT, seed=3, engine=engine)
        for engine in ("native", "stream")
    )
    assert torch.equal(native.chosen, stream.chosen)
    for one, other in zip(native.normalized, stream.normalized, strict=True):
        assert torch.equal(one, other)


def test_the_views_are_as_training_gets_them_but_for_the_normalisation() -> None:
    noise, plan = images(6, 0), plans.byol(16)
    sample = draw_sample(noise, plan, rows=6, seed=0)
    assert len(sample.views) == len(sample.normalized) == 2
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (plan.mean, plan.std))
    for view, raw in zip(sample.views, sample.normalized, strict=True):
        assert view.dtype == torch.uint8
        assert ((raw * std + mean) * 255 - view).abs().max() < 0.51


def test_files_that_cannot_be_read_are_left_out_and_others_keep_their_views(photos: Path) -> None:
    before = data(photos)
    (photos / "1.png").write_bytes(b"not a picture")
    still = plans.ViewPlan(size=30, crop_ratio=(3.0, 3.0))
    sample = draw_sample(before, still, rows=COUNT, seed=0, engine="stream")
    assert sorted(sample.chosen.tolist()) == [0, 2, 3, 4]
    for row, index in enumerate(sample.chosen.tolist()):
        assert sample.views[0][row, 0, 15, 15] == pytest.approx(40 * index + 20, abs=2)
    for file in photos.iterdir():
        file.write_bytes(b"not a picture")
    with pytest.raises(UserError, match=r"none of 5 images drawn from .* can be read"):
        draw_sample(before, still, rows=COUNT, seed=0, engine="stream")
