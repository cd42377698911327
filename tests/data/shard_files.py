"""Shards, made where they are needed."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

from image_files import plain


def write_shard(path: Path, files: dict[str, bytes]) -> Path:
    """A tar of ``files``, as any program may have written it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def grey(value: int) -> bytes:
    return plain((value, value, value), (4, 4))


def grey_shards(folder: Path, *counts: int) -> Path:
    """Shards of images that can be told apart: the i-th of all has value i everywhere."""
    first = 0
    for shard, count in enumerate(counts):
        files = {f"{i:03}.png": grey(i) for i in range(first, first + count)}
        write_shard(folder / f"{shard:02}.tar", files)
        first += count
    return folder
