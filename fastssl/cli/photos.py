"""Single photos in and out of the commands that change one."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TypeVar

import torch
from PIL import Image
from torch import Tensor

from fastssl.data.decode import UnreadableError, decode_full
from fastssl.errors import UserError
from fastssl.files import atomic_write
from fastssl.methods import Method
from fastssl.train.trained import Trained, open_run

M = TypeVar("M", bound=Method)

_FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
_QUALITY = 90


def open_run_of(kind: type[M], path: Path, command: str) -> tuple[Trained, M]:
    """The run in folder ``path`` and its method, which must be of ``kind`` for ``command`` to use it.

    Raises:
        UserError: if it is of another, or there is none.
    """
    trained = open_run(path)
    if not isinstance(trained.method, kind):
        wanted = kind.__module__.rpartition(".")[2]
        raise UserError(
            f"{path} is a run of {trained.config.method}, and {command} needs one of {wanted}: "
            f"fastssl pretrain {wanted} --data YOUR_PHOTOS"
        )
    return trained, trained.method


def read_photo(path: Path) -> Tensor:
    """The image file in its own size, upright and on white: (1, 3, H, W) float32, sRGB in [0, 1].

    Raises:
        UserError: saying why it cannot be read.
    """
    try:
        pixels = decode_full(path.read_bytes())
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except UnreadableError as error:
        raise UserError(f"cannot read {path}: {error}") from error
    return torch.tensor(pixels).permute(2, 0, 1)[None].float() / 255


def write_photo(photo: Tensor, path: Path) -> None:
    """Writes (1, 3, H, W) sRGB in [0, 1]; the ending of ``path`` chooses the format. Raises as :func:`save` does."""
    pixels = (photo[0].clamp(0, 1) * 255).round().byte().permute(1, 2, 0)
    save(Image.fromarray(pixels.contiguous().numpy()), path)


def check_ending(path: Path) -> None:
    """Refuses a name whose ending tells no format that can be written, before any work is done.

    Raises:
        UserError: naming those that do.
    """
    if path.suffix.lower() not in _FORMATS:
        raise UserError(f"{path} does not end in {' or '.join(_FORMATS)}: the ending chooses the format")


def save(picture: Image.Image, path: Path) -> None:
    """Writes ``picture`` in the format of the ending of ``path``.

    Raises:
        UserError: if the file system refuses.
    """
    file = io.BytesIO()
    picture.save(file, _FORMATS[path.suffix.lower()], quality=_QUALITY)
    with atomic_write(path) as partial:
        partial.write_bytes(file.getvalue())
