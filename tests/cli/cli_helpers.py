"""What the tests of the commands share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

QUICK = ["--image_size", "16", "--width", "8", "--epochs", "2", "--batch_size", "8", "--threads", "1"]


@dataclass(frozen=True)
class Outcome:
    """What a command left behind."""

    code: int
    out: str
    err: str

    def error(self) -> str:
        """The one line of an error."""
        assert self.code == 2
        line = self.err.splitlines()[-1]
        assert line.startswith("error: ")
        assert "Traceback" not in self.err
        return line


Run = Callable[..., Outcome]


def write_images(folder: Path, classes: dict[str, int]) -> Path:
    """Noise in the given numbers, a folder a class."""
    rng = np.random.default_rng(0)
    for shade, (name, count) in enumerate(classes.items()):
        (folder / name).mkdir(parents=True)
        for i in range(count):
            pixels = rng.integers(60 * shade, 60 * shade + 60, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{i}.png")
    return folder
