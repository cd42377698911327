"""Uncompressed wav files: where their samples lie, found once, and then any part of them by a single read.

A window of a recording is one open, one look at whether the file is still the same, one read of just its bytes and one
pass that turns them into floats where they are wanted. Nothing else of the file is touched, and nothing copied twice.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from fastssl.data.decode import UnreadableError
from fastssl.data.sources import one_line

# Codes of what samples are: whole numbers, floating point, and "see further on".
_PCM, _FLOAT, _EXTENSIBLE = 1, 3, 0xFFFE
_CHUNK = struct.Struct("<4sI")
_FORMAT = struct.Struct("<HHIIHH")
_SUBFORMAT = 24  # where the code stands behind "see further on"
# Bytes of samples from which on a head does not tell how many: who writes into a pipe does not know.
_UNKNOWN = 0x7FFF_0000

# By code and bits: how samples lie, what silence is, and what the values are multiplied by.
_KINDS: dict[tuple[int, int], tuple[str, int, float]] = {
    (_PCM, 8): ("u1", 128, 2.0**-7),
    (_PCM, 16): ("<i2", 0, 2.0**-15),
    (_PCM, 24): ("<i3", 0, 2.0**-31),  # as the upper three bytes of four
    (_PCM, 32): ("<i4", 0, 2.0**-31),
    (_FLOAT, 32): ("<f4", 0, 1.0),
    (_FLOAT, 64): ("<f8", 0, 1.0),
}


@dataclass(frozen=True)
class Head:
    """What the head of a wav file tells.

    Args:
        rate: samples a second.
        channels: of each of which a sample is as long as the others.
        frames: samples of a channel that are there.
        start: of the first, in bytes.
        width: bytes of a sample of one channel.
        kind: key of how they lie: what they are, and their bits.
        state: size and time of change of the file.
    """

    rate: int
    channels: int
    frames: int
    start: int
    width: int
    kind: tuple[int, int]
    state: tuple[int, int]


def read_head(path: Path) -> Head | None:
    """The head of a wav file of whole or floating-point numbers; None for what is none, or of another kind.

    Raises:
        OSError: if the file cannot be read.
        UnreadableError: if it is cut short: its head tells of more samples than there are, and of a longer file.
    """
    with path.open("rb") as file:
        return _parse(file)


def _parse(file: IO[bytes]) -> Head | None:
    status = os.fstat(file.fileno())
    riff, length, wave = struct.unpack("<4sI4s", file.read(12).ljust(12))
    if (riff, wave) != (b"RIFF", b"WAVE"):
        return None
    form = b""
    while len(chunk := file.read(_CHUNK.size)) == _CHUNK.size:
        name, size = _CHUNK.unpack(chunk)
        if name == b"data":
            return _head(form, file.tell(), size, status, whole=_CHUNK.size + length <= status.st_size)
        if name == b"fmt ":
            form = file.read(min(size, 64))
            file.seek(size - len(form), os.SEEK_CUR)
        else:
            file.seek(size, os.SEEK_CUR)
        file.seek(size % 2, os.SEEK_CUR)  # chunks begin at even places
    return None


def _head(form: bytes, start: int, size: int, status: os.stat_result, *, whole: bool) -> Head | None:
    if len(form) < _FORMAT.size:
        return None
    code, channels, rate, _, align, bits = _FORMAT.unpack_from(form)
    if code == _EXTENSIBLE and len(form) >= _SUBFORMAT + 2:
        (code,) = struct.unpack_from("<H", form, _SUBFORMAT)
    if (code, bits) not in _KINDS or not channels or not rate or align != channels * bits // 8:
        return None
    there = max(0, status.st_size - start)
    frames = min(size, there) // align
    if frames < size // align and size < _UNKNOWN and not whole:  # some writers count the head as samples, too
        raise UnreadableError(f"cut short: {frames} of {size // align} samples are there")
    return Head(rate, channels, frames, start, bits // 8, (code, bits), (status.st_size, status.st_mtime_ns))


def read_into(target: np.ndarray, path: Path, head: Head, start: int) -> None:
    """Reads as many samples as ``target`` (n,) float32 holds, from the one at ``start`` on; channels are averaged.

    Raises:
        UnreadableError: saying why, if they cannot be had, as where the file is another one by now.
    """
    frame = head.channels * head.width
    wanted = len(target) * frame
    try:
        file = os.open(path, os.O_RDONLY)
        try:
            status = os.fstat(file)
            if (status.st_size, status.st_mtime_ns) != head.state:
                head = _again(path, head)
            data = os.pread(file, min(wanted, max(0, head.frames - start) * frame), head.start + start * frame)
        finally:
            os.close(file)
    except OSError as error:
        raise UnreadableError(one_line(error)) from error
    if len(data) < wanted:
        there, all_wanted = start + len(data) // frame, start + len(target)
        raise UnreadableError(f"cut short: {there} of {all_wanted} samples are there")
    _decode(data, head, target)


def _again(path: Path, before: Head) -> Head:
    """The head of a file that has changed, if it is still one of that kind."""
    now = read_head(path)
    if now is None or (now.rate, now.channels, now.kind) != (before.rate, before.channels, before.kind):
        raise UnreadableError("it has changed, and is no such recording any more")
    return now


def _decode(data: bytes, head: Head, target: np.ndarray) -> None:
    form, silence, factor = _KINDS[head.kind]
    if form == "<i3":
        wide = np.zeros((len(data) // 3, 4), np.uint8)
        wide[:, 1:] = np.frombuffer(data, np.uint8).reshape(-1, 3)
        values = wide.view("<i4")[:, 0]
    else:
        values = np.frombuffer(data, form)
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise UnreadableError("it holds values that are not finite")
    if head.channels > 1:
        values = values.reshape(-1, head.channels).mean(1, dtype=np.float64)
    if silence:
        np.subtract(values, silence, out=target, dtype=np.float32)
        values = target
    with np.errstate(over="ignore"):  # values beyond all floats of 32 bits end at 1 as well
        np.multiply(values, factor, out=target, dtype=np.float32, casting="same_kind")
    if head.kind[0] == _FLOAT:  # the mean of which may be beyond 1, as a loudspeaker would not have it
        np.clip(target, -1, 1, out=target)
