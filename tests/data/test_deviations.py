"""How far torchvision's own paths are from ours: what docs/data.md says of it, on a few of its images."""

from __future__ import annotations

import pytest
from dali_helpers import photo
from deviations import Pictures, torchvisions_paths
from other_libraries import load_or_skip
from PIL import Image

from fastssl.data.images import load_all

# Levels of 255, by path and interpolation: the most of a resizing alone, the most of a chain, its mean, which of a few
# images may be a little above that of many.
BOUNDS = {
    "on_floats, bilinear": (0.01, 0.01, 0.01),
    "on_floats, bicubic": (0.01, 0.01, 0.01),
    "on_bytes, bilinear": (1.01, 10, 1.5),
    "on_bytes, bicubic": (19, 24, 1.5),
    "on_pillow, bilinear": (1.01, 25, 1.5),
    "on_pillow, bicubic": (19, 25, 1.5),
}


@pytest.fixture(scope="module")
def sets() -> dict[str, Pictures]:
    drawings = load_all("clipart", size=64).images[:6]
    return {
        "drawings": [Image.fromarray(x.movedim(0, 2).numpy()) for x in drawings],
        "smooth": [photo(i, 150, 200) for i in range(4)],
    }


def test_differences_are_as_documented(sets: dict[str, Pictures]) -> None:
    load_or_skip("torchvision")
    seen = set()
    for what, differences in torchvisions_paths(sets, names=("simclr",)):
        path = next(path for path in BOUNDS if path in what)
        alone, chain, mean = BOUNDS[path]
        assert differences.max() <= (alone if "resized alone" in what else chain), what
        assert differences.mean() <= mean, what
        seen.add(path)
    assert seen == set(BOUNDS)
