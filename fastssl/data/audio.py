"""Audio: folders of recordings, and windows of their raw waveforms.

Files are read by the package ``soundfile`` (libsndfile): the standard library's ``wave`` knows neither samples in
floating point nor, before Python 3.12, the header that most 24-bit files have, nor FLAC.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from fastssl.data.ahead import AheadLoader
from fastssl.data.decode import UnreadableError
from fastssl.data.files import MAX_SKIPPED, allowed
from fastssl.data.layout import arrange
from fastssl.data.loader import Schedule
from fastssl.data.reading import Progress, quote
from fastssl.data.sources import Entry, Listing, Skipped, find_files, one_line
from fastssl.errors import UserError, needed

# Formats that keep every sample and can be read from any sample on.
SUFFIXES = frozenset((".wav", ".flac", ".aif", ".aiff"))

# The names of the Free Spoken Digit Dataset, such as 7_jackson_32.wav.
SPOKEN_DIGITS = r"(?P<digit>\d)_(?P<speaker>[^_]+)_\d+"


def require() -> Any:
    """The module ``soundfile``.

    Raises:
        UserError: saying what to install, where it is missing.
    """
    return needed("soundfile", "audio needs the package soundfile", "pip install 'fastssl[audio]'")


@dataclass(frozen=True)
class Recordings:
    """Recordings of one sample rate, in the order of their names; nothing of them is in memory.

    Args:
        names: the path of each inside the folder.
        paths: of the files.
        lengths: samples of each.
        rate: samples a second, of all.
        labels: (N,) int64 of each kind of label, indices into the ``classes`` of that kind.
        classes: the names of the classes of each kind of label, sorted.
        skipped: the files that could not be used, and why.
    """

    names: tuple[str, ...]
    paths: tuple[Path, ...]
    lengths: tuple[int, ...]
    rate: int
    labels: Mapping[str, Tensor] = field(default_factory=dict)
    classes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    skipped: tuple[Skipped, ...] = ()

    def __len__(self) -> int:
        return len(self.names)

    def identity(self) -> bytes:
        """What is the same as long as names, lengths and rate of the recordings are."""
        return repr((self.names, self.lengths, self.rate)).encode()

    def read(self, position: int, start: int = 0, samples: int | None = None) -> Tensor:
        """The waveform of one recording, or a part of it; channels are averaged.

        Args:
            position: of the recording.
            start: the first sample, in [0, length).
            samples: how many; by default all that follow.
        Returns:
            (samples,) float32 in [-1, 1].
        Raises:
            UnreadableError: saying why, if they cannot be had.
        """
        wanted = self.lengths[position] - start if samples is None else samples
        with _opened(self.paths[position]) as file:
            file.seek(start)
            found = file.read(wanted, dtype="float32", always_2d=True)
        if len(found) < wanted:
            raise UnreadableError(f"cut short: {start + len(found)} of {start + wanted} samples are there")
        if not np.isfinite(found).all():
            raise UnreadableError("it holds values that are not finite")
        # the mean of values that are in floating point, which may be beyond 1, as a loudspeaker would have them
        return torch.from_numpy(found.mean(1).clip(-1, 1))


def list_recordings(
    folder: str,
    *,
    rate: int | None = None,
    pattern: str | None = None,
    max_skipped: float = MAX_SKIPPED,
    progress: Progress | None = None,
) -> Recordings:
    """Every recording below ``folder``: wav (PCM of 8 to 32 bits, floating point), flac and aiff files.

    Nothing is resampled: files of another rate than the others are skipped.

    Args:
        folder: hidden files in it are ignored, links are followed.
        rate: samples a second; by default that of most files.
        pattern: a regular expression that the name of each file, without folders and suffix, has to match as a whole;
            each named group is a kind of label. ``SPOKEN_DIGITS`` gives "digit" and "speaker". By default first folders
            are the label "class", if there are two or more and every recording is in one.
        max_skipped: the share of files that cannot be used, in [0, 1], above which the folder is refused; a single one
            is always allowed.
        progress: called with (files done, files in all) after each file.
    Raises:
        UserError: if there is no recording, a name does not match, or too many files cannot be used.
    """
    if not Path(folder).is_dir():
        raise UserError(f"no folder {folder!r}: give one of {', '.join(sorted(SUFFIXES))} files")
    files, skipped = find_files(Path(folder), SUFFIXES)
    limit = allowed(len(files), max_skipped)
    heads: list[tuple[str, Path, int, int]] = []
    with ThreadPoolExecutor(torch.get_num_threads(), "head") as pool:
        for i, ((name, path), head) in enumerate(
            zip(files, pool.map(_head, [path for _, path in files]), strict=True), 1
        ):
            if isinstance(head, str):
                skipped.append(Skipped(name, head))
            else:
                heads.append((name, path, *head))
            if progress is not None:
                progress(i, len(files))
    usual = Counter(found for *_, found in heads).most_common(1)
    rate = rate or (usual[0][0] if usual else 0)
    skipped += [Skipped(name, f"sampled at {found} Hz and not {rate}") for name, _, _, found in heads if found != rate]
    kept = [head for head in heads if head[-1] == rate]
    if not kept:
        reasons = quote(skipped) or f"no file ends in {', '.join(sorted(SUFFIXES))}"
        raise UserError(f"no recording in {folder!r} ({reasons}): give a folder of recordings")
    if len(skipped) > limit:
        raise UserError(
            f"too many files that cannot be used: {len(skipped)} of {len(files)}, {limit} allowed ({quote(skipped)}): "
            "remove, repair or resample them"
        )
    names, paths, lengths, _ = zip(*kept, strict=True)
    labels, classes = _labels(names, pattern)
    return Recordings(names, paths, lengths, rate, labels, classes, tuple(skipped))


class WindowLoader(AheadLoader):
    """Batches of windows of raw waveforms, as contrastive predictive coding takes them (arXiv:1807.03748, section 3.1).

    One window a recording and epoch. Which recordings make a batch and where their windows are depends on (seed, epoch,
    step, rank and world) alone, so that a run resumed in mid-epoch sees what an uninterrupted one sees, to the bit, and
    no two processes see the same recording in an epoch. A file that cannot be read is counted, named in ``skipped``,
    and its place taken by the next readable one of its batch.

    Args:
        recordings: as ``list_recordings`` gives them.
        samples: of a window.
        batch_size: windows a step and process; what is left of an epoch and fills no batch is left out.
        seed: 0 or more.
        short: what becomes of recordings shorter than a window: "pad" puts silence behind them, "refuse" leaves them
            out, and names them in ``skipped``.
        device: where the windows go.
        rank: of this process among all, on all machines.
        world: how many processes train together.
        threads: that read; by default as many as torch uses.
        ahead: batches in the making, or made, while one is trained on.
        max_skipped: the share of the recordings, in [0, 1], above which unreadable ones end the epoch with an error;
            one is always allowed.

    Raises:
        UserError: if a number is out of range, or no recording is as long as a window where short ones are refused.
    """

    def __init__(
        self,
        recordings: Recordings,
        samples: int,
        batch_size: int,
        seed: int,
        *,
        short: Literal["pad", "refuse"] = "pad",
        device: torch.device | str = "cpu",
        rank: int = 0,
        world: int = 1,
        threads: int | None = None,
        ahead: int = 2,
        max_skipped: float = MAX_SKIPPED,
    ) -> None:
        if samples < 1:
            raise UserError(f"a window has at least 1 sample; got {samples}")
        if short not in ("pad", "refuse"):
            raise UserError(f"short must be 'pad' or 'refuse'; got {short!r}")
        self.recordings, self.samples = recordings, samples
        used: list[int] = []
        skipped = list(recordings.skipped)
        for i, (name, length) in enumerate(zip(recordings.names, recordings.lengths, strict=True)):
            if short == "pad" or length >= samples:
                used.append(i)
            else:
                skipped.append(Skipped(name, f"{length} samples are fewer than the {samples} of a window"))
        if not used:
            longest = max(recordings.lengths)
            raise UserError(f"no recording has the {samples} samples of a window, the longest {longest}: give fewer")
        self._used = used
        # windows are no bytes: the entries are how many there are and what each is called
        files = Listing([Entry(recordings.names[i], bytes) for i in used], skipped)
        schedule = Schedule(len(used), batch_size, seed, rank, world, what="recordings")
        super().__init__(files, schedule, device=device, threads=threads, ahead=ahead, max_skipped=max_skipped)

    def make(self, workers: ThreadPoolExecutor, epoch: int, step: int, chosen: list[int]) -> list[Tensor]:
        """One tensor (batch_size, samples) float32 in [-1, 1]; short recordings end in zeros."""
        generator = self.schedule.generator(epoch, step)
        shares = torch.rand(len(chosen), generator=generator, dtype=torch.float64).tolist()
        found = list(workers.map(self._open, chosen, shares))
        return [torch.stack(self._files.filled(found))]

    def _open(self, position: int, share: float) -> Tensor | None:
        """(samples,) of a recording: its first where ``share`` is 0, its last where it is nearly 1."""
        recording = self._used[position]
        length = self.recordings.lengths[recording]
        start = int(share * (max(0, length - self.samples) + 1))
        count = min(self.samples, length)
        found = self._files.read(position, lambda _: self.recordings.read(recording, start, count))
        return None if found is None else torch.nn.functional.pad(found, (0, self.samples - count))


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """The file, of which only the header is read yet; whatever fails within is an ``UnreadableError``."""
    soundfile = require()
    try:
        with soundfile.SoundFile(path) as file:
            yield file
    except UnreadableError:
        raise
    except Exception as error:  # a decoder given damaged bytes may raise anything
        raise UnreadableError(f"damaged: {one_line(error)}") from error


def _head(path: Path) -> tuple[int, int] | str:
    """Samples of a recording and their rate, or why it cannot be used."""
    try:
        if not path.is_file():
            return "a broken link" if path.is_symlink() else "not a regular file"
        with _opened(path) as file:
            return (file.frames, file.samplerate) if file.frames > 0 else "no sample in it"
    except (OSError, UnreadableError) as error:
        return one_line(error)


def _labels(names: tuple[str, ...], pattern: str | None) -> tuple[dict[str, Tensor], dict[str, tuple[str, ...]]]:
    if pattern is None:
        layout = arrange(names)
        if not layout.classes or -1 in layout.labels:
            return {}, {}
        return {"class": torch.tensor(layout.labels)}, {"class": layout.classes}
    try:
        matcher = re.compile(pattern)
    except re.error as error:
        raise UserError(f"the pattern {pattern!r} is no regular expression: {error}") from error
    matches = [matcher.fullmatch(PurePosixPath(name).stem) for name in names]
    if wrong := next((name for name, match in zip(names, matches, strict=True) if match is None), None):
        raise UserError(f"the name of {wrong!r} does not match {pattern!r}")
    labels, classes = {}, {}
    for kind in matcher.groupindex:
        found = [match[kind] or "" for match in matches if match is not None]
        classes[kind] = tuple(sorted(set(found)))
        number = {name: i for i, name in enumerate(classes[kind])}
        labels[kind] = torch.tensor([number[name] for name in found])
    return labels, classes
