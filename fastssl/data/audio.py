"""Audio: folders of recordings, and windows of their raw waveforms.

Uncompressed wav files are read here (`fastssl.data.wav`), others by the package ``soundfile`` (libsndfile).
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
from typing_extensions import Unpack

from fastssl.data import wav
from fastssl.data.ahead import AheadLoader, Settings, room
from fastssl.data.decode import UnreadableError
from fastssl.data.files import MAX_SKIPPED
from fastssl.data.layout import arrange
from fastssl.data.opening import open_all, refuse_too_many
from fastssl.data.reading import Progress, counted, quote
from fastssl.data.sources import Entry, Listing, Skipped, find_files, one_line
from fastssl.data.wav import Head
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
    what = "audio other than uncompressed wav files needs the package soundfile"
    return needed("soundfile", what, "pip install 'fastssl[audio]'")


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
        heads: of each, if it is an uncompressed wav file, where its samples lie.
        skipped: the files that could not be used, and why; loaders add those that they meet.
    """

    names: tuple[str, ...]
    paths: tuple[Path, ...]
    lengths: tuple[int, ...]
    rate: int
    heads: tuple[Head | None, ...]
    labels: Mapping[str, Tensor] = field(default_factory=dict)
    classes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    skipped: list[Skipped] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.names)

    def __repr__(self) -> str:
        kinds = "".join(f", {counted(len(names), kind, names)}" for kind, names in self.classes.items())
        return f"Recordings({counted(len(self), 'recording')} at {self.rate} Hz{kinds}, {len(self.skipped)} skipped)"

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
        target = np.empty(wanted, np.float32)
        self.read_into(target, position, start)
        return torch.from_numpy(target)

    def read_into(self, target: np.ndarray, position: int, start: int) -> None:
        """``read`` of as many samples as ``target`` (n,) float32 holds, into it. Raises as that does."""
        head = self.heads[position]
        if head is not None:
            wav.read_into(target, self.paths[position], head, start)
            return
        with _opened(self.paths[position]) as file:
            file.seek(start)
            found = file.read(len(target), dtype="float32", always_2d=True)
        if len(found) < len(target):
            raise UnreadableError(f"cut short: {start + len(found)} of {start + len(target)} samples are there")
        if not np.isfinite(found).all():
            raise UnreadableError("it holds values that are not finite")
        # the mean of values that are in floating point, which may be beyond 1, as a loudspeaker would not have them
        np.clip(found.mean(1), -1, 1, out=target)


def list_recordings(
    folder: str | Path,
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
    folder = str(folder)
    if not Path(folder).is_dir():
        raise UserError(f"no folder {folder!r}: give one of {', '.join(sorted(SUFFIXES))} files")
    files, skipped = find_files(Path(folder), SUFFIXES)
    heads = [(*files[i], *head) for i, head in open_all(files, _head, skipped, progress)]
    usual = Counter(found for *_, found in heads).most_common(1)
    rate = rate or (usual[0][0] if usual else 0)
    skipped += [Skipped(name, f"sampled at {found} Hz and not {rate}") for name, *_, found in heads if found != rate]
    kept = [head for head in heads if head[-1] == rate]
    if not kept:
        reasons = quote(skipped) or f"no file ends in {', '.join(sorted(SUFFIXES))}"
        raise UserError(f"no recording in {folder!r} ({reasons}): give a folder of recordings")
    advice = "remove, repair or resample them"
    refuse_too_many(skipped, len(files), max_skipped, "files that cannot be used", advice)
    names, paths, lengths, wavs, _ = zip(*kept, strict=True)
    labels, classes = _labels(names, pattern)
    return Recordings(names, paths, lengths, rate, wavs, labels, classes, skipped)


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
        settings: see `fastssl.data.ahead.Settings`.

    Raises:
        UserError: if a number is out of range, or no recording is as long as a window where short ones are refused.
    """

    what = "recordings"

    def __init__(
        self,
        recordings: Recordings,
        samples: int,
        batch_size: int,
        seed: int,
        *,
        short: Literal["pad", "refuse"] = "pad",
        **settings: Unpack[Settings],
    ) -> None:
        if samples < 1:
            raise UserError(f"a window has at least 1 sample; got {samples}")
        if short not in ("pad", "refuse"):
            raise UserError(f"short must be 'pad' or 'refuse'; got {short!r}")
        self.recordings, self.samples = recordings, samples
        used: list[int] = []
        skipped = recordings.skipped if short == "pad" else list(recordings.skipped)
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
        super().__init__(files, batch_size, seed, **settings)

    def make(self, workers: ThreadPoolExecutor, epoch: int, step: int, chosen: list[int]) -> list[Tensor]:
        """One tensor (batch_size, samples) float32 in [-1, 1]; short recordings end in zeros."""
        generator = self.schedule.generator(epoch, step)
        shares = torch.rand(len(chosen), generator=generator, dtype=torch.float64).tolist()
        windows = room(len(chosen), self.samples)
        targets = windows.numpy()
        found: list[bool | None] = [None] * len(chosen)

        def fill(first: int) -> None:
            # several a thread at once: to hand each over singly takes longer than to read it
            for i in range(first, len(chosen), self._threads):
                found[i] = self._fill(targets[i], chosen[i], shares[i])

        list(workers.map(fill, range(min(self._threads, len(chosen)))))
        for i, source in enumerate(self._files.substitutes(found)):
            if source != i:
                targets[i] = targets[source]
        return [windows]

    def _fill(self, target: np.ndarray, position: int, share: float) -> bool | None:
        """Puts (samples,) of a recording into ``target``: its first where ``share`` is 0, its last where nearly 1.

        Returns:
            None if they cannot be read.
        """
        recording = self._used[position]
        length = self.recordings.lengths[recording]
        start = int(share * (max(0, length - self.samples) + 1))
        count = min(self.samples, length)

        def use(_: bytes) -> bool:
            self.recordings.read_into(target[:count], recording, start)
            target[count:] = 0
            return True

        return self._files.read(position, use)


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


def _head(_: str, path: Path) -> tuple[int, Head | None, int]:
    """Samples of a recording, where they lie, if that is known, and their rate.

    Raises:
        UnreadableError: saying why, if it cannot be used.
    """
    if not path.is_file():
        raise UnreadableError("a broken link" if path.is_symlink() else "not a regular file")
    try:
        head = wav.read_head(path)
    except OSError as error:
        raise UnreadableError(one_line(error)) from error
    if head is not None:
        frames, rate = head.frames, head.rate
    else:
        try:
            with _opened(path) as file:
                frames, rate = file.frames, file.samplerate
        except UserError as error:  # without the package, one odd file need not stop what does without
            if path.suffix.lower() != ".wav":
                raise
            raise UnreadableError(str(error)) from error
    if frames <= 0:
        raise UnreadableError("no sample in it")
    return frames, head, rate


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
