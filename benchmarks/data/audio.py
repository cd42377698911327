"""Windows of raw waveforms from wav files, 16-bit mono at 16 kHz: ours, and loops that a user would write.

Every provider opens every file at every call, as an epoch does, and reads one window at a random place of each. A case
of N files in t ms serves 1000 N / t windows a second.
"""

from __future__ import annotations

import atexit
import functools
import shutil
import tempfile
import wave
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks import where
from benchmarks.data.from_files import Epochs
from benchmarks.harness import OURS, Case, Work
from benchmarks.ops.augment import WORKERS
from fastssl.data.audio import WindowLoader, list_recordings, require

RATE, BATCH = 16_000, 64


@functools.cache
def folder(n: int, seconds: int) -> Path:
    """A folder, kept till the end, of ``n`` wav files of noise."""
    made = Path(tempfile.mkdtemp(prefix="fastssl-wav-"))
    atexit.register(shutil.rmtree, made, ignore_errors=True)
    rng = np.random.default_rng(0)
    for i in range(n):
        with wave.open(str(made / f"{i:05}.wav"), "wb") as file:
            file.setparams((1, 2, RATE, 0, "NONE", "not compressed"))
            file.writeframes(rng.integers(-(2**15), 2**15, RATE * seconds, dtype=np.int16).tobytes())
    return made


def by_window_loader(n: int, seconds: int, samples: int) -> Work:
    recordings = list_recordings(str(folder(n, seconds)))
    loader = WindowLoader(recordings, samples, BATCH, 0, device=where.device())
    return Epochs(loader.epoch)


class Windows(torch.utils.data.Dataset[Tensor]):
    """A window of each file, by soundfile."""

    def __init__(self, paths: list[Path], samples: int) -> None:
        self.paths, self.samples, self.soundfile = paths, samples, require()

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, i: int) -> Tensor:
        with self.soundfile.SoundFile(self.paths[i]) as file:
            file.seek(int(torch.randint(file.frames - self.samples + 1, ())))
            return torch.from_numpy(file.read(self.samples, dtype="float32"))


def by_data_loader(n: int, seconds: int, samples: int, workers: int) -> Work:
    loader = torch.utils.data.DataLoader(
        Windows(sorted(folder(n, seconds).iterdir()), samples),
        BATCH,
        shuffle=True,
        generator=torch.Generator(device="cpu").manual_seed(0),
        num_workers=workers,
        persistent_workers=workers > 0,
    )
    return Epochs(lambda epoch: ([windows.to(where.device())] for windows in loader))


def by_wave(n: int, seconds: int, samples: int) -> Work:
    paths = sorted(folder(n, seconds).iterdir())

    def window(path: Path) -> Tensor:
        with wave.open(str(path)) as file:
            file.setpos(int(torch.randint(file.getnframes() - samples + 1, (), device="cpu")))
            pixels = np.frombuffer(file.readframes(samples), dtype=np.int16)
        return torch.from_numpy(pixels.astype(np.float32) / 2**15)

    def epoch(number: int) -> Iterator[list[Tensor]]:
        order = torch.randperm(n, generator=torch.Generator(device="cpu").manual_seed(number)).tolist()
        for first in range(0, n, BATCH):
            yield [torch.stack([window(paths[i]) for i in order[first : first + BATCH]]).to(where.device())]

    return Epochs(epoch)


def cases() -> list[Case]:
    makers: dict[str, Callable[..., Work]] = {
        OURS: by_window_loader,
        "soundfile, a plain loop": functools.partial(by_data_loader, workers=0),
        f"soundfile, {WORKERS} workers": functools.partial(by_data_loader, workers=WORKERS),
        "wave of the standard library": by_wave,
    }
    return [
        Case(
            op="audio",
            shape=f"windows of {samples} from {n} wav files of {seconds} s",
            dtype="float32",
            providers={name: functools.partial(make, n, seconds, samples) for name, make in makers.items()},
        )
        for n, seconds, samples in ((1024, 1, 8_000), (1024, 12, 20_480))
    ]
