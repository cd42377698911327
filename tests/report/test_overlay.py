from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from fastssl.errors import UserError
from fastssl.report.overlay import as_gif, beside, overlaid, write_movie


def grey(height: int = 20, width: int = 30, level: int = 100) -> Tensor:
    return torch.full((height, width, 3), level, dtype=torch.uint8)


def test_objects_are_tinted_and_have_a_white_outline() -> None:
    mask = torch.zeros(20, 30, dtype=torch.uint8)
    mask[5:15, 5:15] = 1
    mask[5:15, 20:25] = 255  # void
    drawn = overlaid(grey(), mask)
    assert drawn.dtype == torch.uint8
    assert drawn[10, 10].tolist() == [round(0.45 * 100 + 0.55 * 128), 45, 45]
    assert drawn[0, 0].tolist() == drawn[10, 22].tolist() == [100, 100, 100]
    assert drawn[4, 10].tolist() == drawn[10, 15].tolist() == [255, 255, 255]
    assert (drawn == 255).all(2).sum() == 12 * 12 - 10 * 10


def test_a_gif_has_all_frames_of_a_slow_movie_and_some_of_a_fast_one() -> None:
    frames = [grey(level=20 * i) for i in range(10)]
    for rate, count, pause in ((10.0, 10, 100), (30.0, 5, 70)):
        with Image.open(io.BytesIO(as_gif(frames, rate))) as movie:
            assert (movie.n_frames, movie.info["duration"], movie.info["loop"]) == (count, pause, 0)
            movie.seek(1)
            shown = np.asarray(movie.convert("RGB"))
            assert abs(int(shown[0, 0, 0]) - 20 * (10 // count)) <= 2


def test_a_gif_is_reduced(tmp_path: Path) -> None:
    write_movie([grey(500, 1000)], tmp_path / "m.gif", 24)
    with Image.open(tmp_path / "m.gif") as movie:
        assert movie.size == (640, 320)


def test_an_mp4_has_all_frames(tmp_path: Path) -> None:
    pytest.importorskip("av", reason="PyAV is not installed: pip install 'fastssl[video]'")
    from fastssl.data.video import frame_rate, open_one

    write_movie((grey(33, 47, 10 * i) for i in range(12)), tmp_path / "m.mp4", 12.0)
    film = open_one(str(tmp_path / "m.mp4"))
    assert len(film) == 12
    assert frame_rate(film) == pytest.approx(12)
    frames = film.read(range(12))
    assert frames.shape == (12, 32, 46, 3)
    assert frames.float().mean((1, 2, 3)).tolist() == pytest.approx([10 * i for i in range(12)], abs=4)


def test_movies_beside_each_other_have_one_height_and_wait_for_each_other() -> None:
    frames = list(beside([[grey(20, 30, 0), grey(20, 30, 50)], [grey(40, 40, 200)]], 10))
    assert [frame.shape for frame in frames] == [(10, 25, 3)] * 2
    assert frames[1][5, 2].tolist() == [50] * 3
    assert frames[1][5, 20].tolist() == [200] * 3


def test_another_ending_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"m\.avi does not end in \.gif or \.mp4"):
        write_movie([grey()], tmp_path / "m.avi", 24)
    assert not list(tmp_path.iterdir())
