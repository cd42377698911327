"""Small recordings, made where they are needed."""

from __future__ import annotations

import wave
from pathlib import Path

import numpy as np


def write_wav(path: Path, samples: np.ndarray, rate: int = 8000) -> Path:
    """``samples``, (N) or (N, channels) int16, as 16-bit PCM."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(path), "wb") as file:
        file.setparams((1 if samples.ndim == 1 else samples.shape[1], 2, rate, 0, "NONE", "not compressed"))
        file.writeframes(samples.astype("<i2").tobytes())
    return path


def ramp(count: int, start: int = 0) -> np.ndarray:
    """(count,) int16: start, start + 1, ..."""
    return np.arange(start, start + count, dtype=np.int16)
